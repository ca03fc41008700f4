//! Steps of small random models of every kind, beside the same steps in float64.

mod common;

use common::{Kind, Made, Slow, changed, column, keys, make};
use lm::{
    Choices, Config, Conversation, Engine, Float, Guidance, Held, Loading, Model, Options, Random, Sampler, Source,
    TextSampler, Turn, Way,
};
use serde_json::json;
use std::sync::Arc;

const GREEDY: Sampler = Sampler { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0 };

fn greedy(held: Held) -> Choices {
    let text = TextSampler { sampler: GREEDY, repetition_penalty: 1.0, padding_bonus: 0.0 };
    Choices { held, text, audio: GREEDY, ..Choices::default() }
}

fn engine(model: &Arc<Model>, way: Way, rows: usize, threads: usize) -> Engine {
    Engine::new(Arc::clone(model), Options { threads, way, dot: None, rows })
}

/// A step of one conversation: its text and codes.
fn step(engine: &mut Engine, conversation: &mut Conversation, tokens: &[i32], recent: &[i32]) -> (i32, Vec<i32>) {
    let mut codes = vec![0; engine.model().config().dep_q];
    let mut turn = [Turn { conversation, tokens, recent, text: 0, codes: &mut codes }];
    engine.hear(&mut turn).unwrap();
    engine.speak(&mut turn).unwrap();
    (turn[0].text, codes)
}

/// The largest difference of logits, as a part of their spread.
fn off(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let spread = (want.iter().map(|x| x * x).sum::<f64>() / want.len().max(1) as f64).sqrt();
    got.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max) / spread.max(1e-9)
}

/// Twenty steps: the window, of six positions, turns three times.
fn compare(made: &Made, way: Way, held: Held, tolerance: f64, what: &str) {
    let model = made.load();
    let config = model.config().clone();
    let mut random = fastrand::Rng::with_seed(7);
    let mut engine = engine(&model, way, 2, 2);
    let mut conversation = Conversation::new(&model, greedy(held)).unwrap();
    let mut slow = Slow::new(made);
    let mut numbers = |n: usize| -> Vec<f32> { (0..n).map(|_| random.f32() - 0.5).collect() };
    let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|x| f64::from(*x)).collect() };
    if config.cross_attention {
        let (added, source) = (numbers(config.dim), numbers(5 * config.dim));
        conversation.add_to_input(&added).unwrap();
        conversation.attend_to(Arc::new(engine.source(&source).unwrap())).unwrap();
        slow.added = Some(wide(&added));
        slow.source = Some(source.chunks_exact(config.dim).map(wide).collect());
    }
    for i in 0..20 {
        let column = column(&mut random, &config);
        let (text, codes) = step(&mut engine, &mut conversation, &column, &[]);
        let (logits, heads) = slow.hear(&column);
        let text_off = off(conversation.text_logits().unwrap(), &logits);
        assert!(text_off < tolerance, "{what}, {way:?}, step {i}: the text's logits are off by {text_off}");
        if !heads.is_empty() {
            let heads_off = off(conversation.extra_heads().unwrap(), &heads);
            assert!(heads_off < tolerance, "{what}, {way:?}, step {i}: the extra heads are off by {heads_off}");
        }
        for (k, logits) in slow.speak(text, &codes).iter().enumerate() {
            let got = &conversation.audio_logits().unwrap()[k * config.card..][..config.card];
            assert!(off(got, logits) < tolerance, "{what}, {way:?}, step {i}, codebook {k}: {}", off(got, logits));
        }
    }
}

#[test]
fn every_kind_agrees_with_float64() {
    let packed = |bits, group, float| Kind::Packed(bits, group, float);
    let traits = [
        ("plain", json!({})),
        ("shared heads", json!({"kv_repeat": 2, "positional_embedding": "rope_concat", "depformer_kv_repeat": 1})),
        ("all heads shared", json!({"kv_repeat": 4, "depformer_kv_repeat": 2, "text_card_out": 30})),
        ("cross-attention", json!({"cross_attention": true})),
        (
            "two streams, short rows",
            json!({"demux_second_stream": true, "depformer_low_rank_embeddings": 32, "depformer_dim": 64,
                   "depformer_weights_per_step_schedule": [0, 1, 1], "depformer_norm": "layer_norm",
                   "extra_heads_num_heads": 2, "extra_heads_dim": 3}),
        ),
        ("two streams", json!({"demux_second_stream": true, "depformer_norm": "layer_norm"})),
        ("hears only", json!({"dep_q": 0, "extra_heads_num_heads": 1})),
    ];
    for (name, changes) in &traits {
        for kind in [packed(4, 32, Float::F16), Kind::Floats(Float::F32)] {
            let made = make(changed(changes.clone()), kind, 3, false);
            compare(&made, Way::Float32, Held::F32, 1e-4, name);
            compare(&made, Way::Int16, Held::F32, 3e-3, name);
        }
    }
    let kinds = [2, 3, 4, 5, 6, 8]
        .into_iter()
        .flat_map(|bits| [packed(bits, 32, Float::F32), packed(bits, 64, Float::Bf16), packed(bits, 128, Float::F16)]);
    for kind in kinds.chain([Kind::Floats(Float::F16), Kind::Floats(Float::Bf16)]) {
        let json = changed(json!({"dim": 128, "depformer_dim": 128, "num_layers": 1, "depformer_num_layers": 1}));
        let made = make(json, kind, 4, false);
        compare(&made, Way::Float32, Held::F32, 1e-4, &format!("{kind:?}"));
        compare(&made, Way::Int8, Held::Bytes, 0.25, &format!("{kind:?}"));
        compare(&made, Way::Int16, Held::F16, 1e-2, &format!("{kind:?}"));
    }
    // No whole blocks of 32, and heads of an odd half.
    let odd = changed(json!({"dim": 40, "depformer_dim": 36, "depformer_num_heads": 3}));
    compare(&make(odd, Kind::Floats(Float::F32), 5, false), Way::Int8, Held::F32, 3e-5, "odd widths");
}

#[test]
fn adapters_and_replacements_are_merged() {
    for kind in [Kind::Floats(Float::F32), Kind::Floats(Float::Bf16)] {
        let mut made = make(changed(json!({})), kind, 8, true);
        made.replaced = vec![(3, 5), (40, 1)];
        // Merged weights are rounded to the file's type again.
        let tolerance = if matches!(kind, Kind::Floats(Float::F32)) { 3e-5 } else { 0.05 };
        compare(&made, Way::Float32, Held::F32, tolerance, "changed");
    }
    // Packed again, in eight bits.
    let made = make(changed(json!({})), Kind::Packed(8, 32, Float::F32), 9, true);
    compare(&made, Way::Float32, Held::F32, 0.25, "changed and packed");
}

/// Conversations with seeds, guidance, other samplers and numbers of codebooks.
fn conversations(model: &Arc<Model>) -> Vec<Conversation> {
    let text = TextSampler { repetition_penalty: 1.5, padding_bonus: 0.5, ..Choices::default().text };
    let guidance = |text| Some(Guidance { coef: 2.0, text });
    [
        Choices { seed: 1, ..Choices::default() },
        Choices { seed: 2, held: Held::Bytes, guidance: guidance(true), codebooks: Some(2), ..Choices::default() },
        Choices { seed: 3, held: Held::F32, text, padding: Some(3), codebooks: Some(0), ..Choices::default() },
        Choices {
            seed: 4,
            guidance: guidance(false),
            audio: Sampler { top_p: 0.8, ..Choices::default().audio },
            ..Choices::default()
        },
    ]
    .into_iter()
    .enumerate()
    .map(|(i, choices)| {
        let mut conversation = Conversation::new(model, choices).unwrap();
        let mut random = fastrand::Rng::with_seed(i as u64);
        let added: Vec<f32> = (0..conversation.rows() * model.config().dim).map(|_| random.f32() - 0.5).collect();
        conversation.add_to_input(&added).unwrap();
        conversation
    })
    .collect()
}

/// All that a conversation shows: bits, not numbers.
fn shown(conversation: &Conversation) -> Vec<u32> {
    let logits = conversation.text_logits().unwrap().iter().chain(conversation.audio_logits().unwrap());
    logits.map(|x| x.to_bits()).collect()
}

#[test]
fn neighbours_rows_absences_and_threads_change_no_bit() {
    for (kind, way) in [
        (Kind::Packed(4, 32, Float::F16), Way::Int8),
        (Kind::Packed(8, 64, Float::Bf16), Way::Int16),
        (Kind::Packed(4, 32, Float::F16), Way::Float32),
        (Kind::Floats(Float::Bf16), Way::Int16),
    ] {
        let json = changed(json!({"depformer_dim": 64, "kv_repeat": 2}));
        let model = make(json, kind, 11, false).load();
        let mut random = fastrand::Rng::with_seed(5);
        // What each reads at each of its steps.
        let given: Vec<Vec<Vec<i32>>> = conversations(&model)
            .iter()
            .map(|c| {
                (0..12).map(|_| (0..c.rows()).flat_map(|_| column(&mut random, model.config())).collect()).collect()
            })
            .collect();
        let alone: Vec<Vec<(i32, Vec<i32>, Vec<u32>)>> = conversations(&model)
            .into_iter()
            .zip(&given)
            .map(|(mut conversation, given)| {
                let mut engine = engine(&model, way, 2, 1);
                let mut said = Vec::new();
                for tokens in given {
                    let (text, codes) = step(&mut engine, &mut conversation, tokens, &[1, 2]);
                    said.push((text, codes, shown(&conversation)));
                }
                said
            })
            .collect();
        for threads in [1, 2, 3] {
            let mut engine = engine(&model, way, 6, threads);
            let mut all = conversations(&model);
            let mut done = [0; 4];
            while done.iter().any(|done| *done < 12) {
                // Some are absent, and the order changes.
                let mut present: Vec<(usize, &mut Conversation)> =
                    all.iter_mut().enumerate().filter(|(i, _)| done[*i] < 12 && random.bool()).collect();
                random.shuffle(&mut present);
                let mut codes = vec![[0; 3]; present.len()];
                let order: Vec<usize> = present.iter().map(|(i, _)| *i).collect();
                let mut turns: Vec<Turn<'_>> = present
                    .into_iter()
                    .zip(&mut codes)
                    .map(|((i, conversation), codes)| {
                        let tokens = &given[i][done[i]][..];
                        Turn { conversation, tokens, recent: &[1, 2], text: 0, codes }
                    })
                    .collect();
                engine.hear(&mut turns).unwrap();
                let texts: Vec<i32> = turns.iter().map(|turn| turn.text).collect();
                turns.reverse();
                engine.speak(&mut turns).unwrap();
                drop(turns);
                for ((i, text), codes) in order.iter().zip(texts).zip(codes) {
                    let want = &alone[*i][done[*i]];
                    assert_eq!((text, codes.to_vec()), (want.0, want.1.clone()), "{way:?} {threads} threads, {i}");
                    assert!(
                        shown(&all[*i]) == want.2,
                        "{way:?} {threads} threads, conversation {i}, step {}",
                        done[*i]
                    );
                    done[*i] += 1;
                }
            }
        }
        let fewer = &alone[1][0].1;
        assert!(fewer[2] == 0 && alone[2][0].1 == [0; 3], "codes that are not computed are 0");
    }
}

#[test]
fn a_prompt_that_is_read_is_as_one_that_was_heard() {
    let model = make(changed(json!({})), Kind::Packed(4, 32, Float::F16), 12, false).load();
    let mut random = fastrand::Rng::with_seed(5);
    let columns: Vec<Vec<i32>> = (0..5).map(|_| column(&mut random, model.config())).collect();
    for mut heard in conversations(&model) {
        let mut engine = engine(&model, Way::Int16, 3, 2);
        let mut read = heard.copy().unwrap();
        let rows = heard.rows();
        for column in &columns {
            step(&mut engine, &mut heard, &column.repeat(rows), &[]);
        }
        engine.read(&mut read, &columns.concat(), &[]).unwrap();
        assert_eq!(read.position(), 5);
        assert!(read.text_logits().is_err(), "nothing was chosen yet");
        let next = column(&mut random, model.config()).repeat(rows);
        assert_eq!(step(&mut engine, &mut heard, &next, &[]), step(&mut engine, &mut read, &next, &[]));
        assert!(shown(&heard) == shown(&read));
        assert!(engine.read(&mut read, &columns.concat(), &[]).is_err(), "the window is too short for more");
    }
    // Inputs that are known otherwise.
    let made = make(changed(json!({})), Kind::Floats(Float::F32), 12, false);
    let model = made.load();
    let (mut slow, mut engine) = (Slow::new(&made), engine(&model, Way::Int16, 2, 2));
    let mut conversation = Conversation::new(&model, greedy(Held::F32)).unwrap();
    let embedded: Vec<f32> = (0..3 * 64).map(|_| random.f32() - 0.5).collect();
    engine.read(&mut conversation, &columns.concat(), &embedded).unwrap();
    for x in embedded.chunks_exact(64) {
        slow.run(x.iter().map(|x| f64::from(*x)).collect());
    }
    for column in &columns[3..] {
        slow.hear(column);
    }
    let next = column(&mut random, model.config());
    step(&mut engine, &mut conversation, &next, &[]);
    assert!(off(conversation.text_logits().unwrap(), &slow.hear(&next).0) < 3e-5);
}

#[test]
fn copies_and_what_was_kept_go_on_with_the_same_bits() {
    let model = make(changed(json!({"kv_repeat": 2})), Kind::Packed(4, 32, Float::F16), 13, false).load();
    let mut engine = engine(&model, Way::Int8, 2, 2);
    for steps in [1, 4, 15] {
        for (i, mut first) in conversations(&model).into_iter().enumerate() {
            let mut random = fastrand::Rng::with_seed(9);
            let mut next = || column(&mut random, model.config());
            for _ in 0..steps {
                let tokens = next().repeat(first.rows());
                step(&mut engine, &mut first, &tokens, &[]);
            }
            let mut copy = first.copy().unwrap();
            let mut kept = conversations(&model).remove(i);
            kept.restore(&first.save(), first.position()).unwrap();
            assert_eq!(kept.save(), first.save());
            assert_eq!((kept.bytes(), copy.bytes()), (first.bytes(), first.bytes()));
            for _ in 0..10 {
                let tokens = next().repeat(first.rows());
                let said = step(&mut engine, &mut first, &tokens, &[]);
                assert_eq!(step(&mut engine, &mut copy, &tokens, &[]), said);
                assert_eq!(step(&mut engine, &mut kept, &tokens, &[]), said);
                assert!(shown(&first) == shown(&copy) && shown(&first) == shown(&kept));
            }
            // The same seed from the beginning again; another seed, something else.
            first.reset(None);
            assert_eq!(first.position(), 0);
        }
    }
    let mut all = conversations(&model);
    let parts = all[1].save();
    assert!(all[0].restore(&parts, 0).is_err(), "the number of arrays");
    let tokens = column(&mut fastrand::Rng::with_seed(1), model.config());
    step(&mut engine, &mut all[0], &tokens, &[]);
    let parts = all[0].save();
    for position in [0, 2, u64::MAX] {
        assert!(all[2].restore(&parts, position).is_err(), "another type, and another position");
        assert!(all[0].restore(&parts, position).is_err(), "{position} positions");
    }
    all[0].restore(&parts, 1).unwrap();
}

#[test]
fn seeds_repeat_a_conversation() {
    let model = make(changed(json!({})), Kind::Packed(8, 32, Float::F16), 14, false).load();
    let mut engine = engine(&model, Way::Int16, 1, 1);
    let mut said = |conversation: &mut Conversation| -> Vec<(i32, Vec<i32>)> {
        (0..20).map(|_| step(&mut engine, conversation, &[-1; 6], &[])).collect()
    };
    let mut conversation = Conversation::new(&model, Choices { seed: 5, ..Choices::default() }).unwrap();
    let first = said(&mut conversation);
    conversation.reset(None);
    assert_eq!(said(&mut conversation), first);
    conversation.reset(Some(6));
    assert_ne!(said(&mut conversation), first);
    conversation.reset(Some(5));
    assert_eq!(said(&mut conversation), first);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let model = make(changed(json!({})), Kind::Floats(Float::F32), 15, false).load();
    let other = make(changed(json!({})), Kind::Floats(Float::F32), 15, false).load();
    let mut engine = engine(&model, Way::Int16, 2, 1);
    let mut conversation = Conversation::new(&model, greedy(Held::F16)).unwrap();
    let mut stranger = Conversation::new(&other, greedy(Held::F16)).unwrap();
    let good = [0; 6];
    for tokens in [&[0; 5][..], &[0, 0, 0, 0, 0, 25], &[41, 0, 0, 0, 0, 0], &[-2, 0, 0, 0, 0, 0], &[i32::MIN; 6]] {
        let mut turn = [Turn { conversation: &mut conversation, tokens, recent: &[], text: 0, codes: &mut [0; 3] }];
        assert!(engine.hear(&mut turn).is_err(), "{tokens:?}");
    }
    let mut codes = [0; 3];
    let mut turn = [Turn { conversation: &mut stranger, tokens: &good, recent: &[], text: 0, codes: &mut codes }];
    assert!(engine.hear(&mut turn).is_err());
    let mut turn = [Turn { conversation: &mut conversation, tokens: &good, recent: &[], text: 0, codes: &mut codes }];
    assert!(engine.speak(&mut turn).is_err(), "nothing was heard");
    engine.hear(&mut turn).unwrap();
    turn[0].text = 99;
    assert!(engine.speak(&mut turn).is_err(), "a text that the model does not have");
    turn[0].text = 3;
    engine.speak(&mut turn).unwrap();
    assert!(engine.speak(&mut turn).is_err(), "twice");
    assert_eq!(conversation.position(), 1);
    assert!(engine.source(&[0.0; 64]).is_err());
    assert!(conversation.add_to_input(&[0.0; 63]).is_err() && conversation.add_to_input(&[f32::NAN; 64]).is_err());
    for choices in [
        Choices { codebooks: Some(4), ..Choices::default() },
        Choices { padding: Some(40), ..Choices::default() },
        Choices { audio: Sampler { temperature: -1.0, ..GREEDY }, ..Choices::default() },
        Choices { audio: Sampler { temperature: f32::NAN, ..GREEDY }, ..Choices::default() },
        Choices { audio: Sampler { top_p: 0.0, ..GREEDY }, ..Choices::default() },
        Choices { audio: Sampler { min_p: 1.5, ..GREEDY }, ..Choices::default() },
        Choices { guidance: Some(Guidance { coef: f32::INFINITY, text: true }), ..Choices::default() },
    ] {
        assert!(Conversation::new(&model, choices).is_err(), "{choices:?}");
    }
    let mut three: Vec<Conversation> = (0..3).map(|_| Conversation::new(&model, greedy(Held::F16)).unwrap()).collect();
    let mut codes = [[0; 3]; 3];
    let mut turns: Vec<Turn<'_>> = three
        .iter_mut()
        .zip(&mut codes)
        .map(|(conversation, codes)| Turn { conversation, tokens: &good, recent: &[], text: 0, codes })
        .collect();
    assert!(engine.hear(&mut turns).is_err(), "more rows than there is room for");
}

#[test]
fn random_models_are_seeded_and_as_large_as_they_say() {
    let json = changed(json!({"dim": 256, "depformer_dim": 128, "text_card": 500, "card": 200})).to_string();
    for (bits, float) in [(4, Float::Bf16), (8, Float::F32), (3, Float::F16), (16, Float::Bf16), (16, Float::F32)] {
        let logits = |seed: u64, threads: usize| {
            let config = Config::from_json(&json).unwrap();
            let hidden = Config::hidden_from_json(&json).unwrap();
            let source = Source::random(Random { bits, group: 32, float, seed, hidden });
            let said = source.bytes(&config);
            let model = Model::load(config, source, &Loading { threads, memory: None, progress: &|_| Ok(()) }).unwrap();
            let share = said as f64 / model.held_bytes() as f64;
            assert!((0.9..1.1).contains(&share), "{bits} bits, {float:?}: {share} of what is held");
            let mut conversation = Conversation::new(&model, greedy(Held::F32)).unwrap();
            let mut engine = engine(&model, Way::Float32, 1, 1);
            for _ in 0..3 {
                step(&mut engine, &mut conversation, &[1, 2, 3, 4, 5, 6], &[]);
            }
            conversation.text_logits().unwrap().to_vec()
        };
        let first = logits(1, 1);
        let spread = (first.iter().map(|x| x * x).sum::<f32>() / first.len() as f32).sqrt();
        assert!((0.3..3.0).contains(&spread), "{bits} bits, {float:?}: logits of {spread}");
        assert!(first == logits(1, 3), "threads make no other model");
        assert!(first != logits(2, 1), "another seed is another model");
    }
    let json = keys().to_string();
    let config = Config::from_json(&json).unwrap();
    for (bits, group) in [(7, 32), (1, 32), (4, 48), (4, 0), (4, 128)] {
        let source = Source::random(Random { bits, group, float: Float::F32, seed: 1, hidden: [64, 64] });
        let loading = Loading { threads: 1, memory: None, progress: &|_| Ok(()) };
        assert!(Model::load(config.clone(), source, &loading).is_err(), "{bits} bits in groups of {group}");
    }
}

#[test]
fn models_of_the_same_file_and_changes_are_shared() {
    let mut made = make(changed(json!({})), Kind::Packed(4, 32, Float::F16), 31, false);
    // A file that was written within the last second may change unseen.
    let first = made.load();
    assert!(!Arc::ptr_eq(&first, &made.load()));
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let first = made.load();
    assert!(Arc::ptr_eq(&first, &made.load()));
    made.replaced = vec![(1, 2)];
    assert!(!Arc::ptr_eq(&first, &made.load()), "other rows");
    made.replaced.clear();
    made.json["context"] = json!(7);
    assert!(!Arc::ptr_eq(&first, &made.load()), "another configuration");
}
