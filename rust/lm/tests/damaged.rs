//! Sources that do not fit, and files that are damaged: each is refused with a sentence, and nothing panics.

mod common;

use std::fs;

use checkpoint::Dtype;
use common::{Kind, Made, changed, make};
use lm::{Change, Float, Loading, Model, Module, Place};
use serde_json::json;

fn made(kind: Kind, adapted: bool) -> Made {
    make(changed(json!({"num_layers": 1, "depformer_num_layers": 1})), kind, 21, adapted)
}

fn refused(made: &Made, part: &str) {
    let message = made.try_load().map(drop).unwrap_err().to_string();
    assert!(message.contains(part), "{part}: {message}");
    assert!(message.starts_with(char::is_uppercase) && message.ends_with('.'), "{message}");
}

const NAME: &str = "transformer.layers.0.self_attn.in_proj";

#[test]
fn what_is_missing_surplus_or_of_another_shape_is_named() {
    for kind in [Kind::Packed(4, 32, Float::F16), Kind::Floats(Float::Bf16)] {
        let with = |change: &dyn Fn(&mut Made)| {
            let mut made = made(kind, false);
            change(&mut made);
            made
        };
        made(kind, false).load();
        refused(&with(&|m| _ = m.modules.remove(NAME)), "in_proj is missing");
        refused(&with(&|m| _ = m.modules.remove("transformer.layers.0.gating.linear_in")), "linear_in is missing");
        refused(
            &with(&|m| _ = m.modules.insert("more".into(), m.modules["out_norm"])),
            "more is not a part of this model",
        );
        let changed = |change: &dyn Fn(&mut Module)| with(&|m| change(m.modules.get_mut(NAME).unwrap()));
        refused(&changed(&|m| m.weight.rows -= 1), "in_proj");
        refused(&changed(&|m| m.weight.columns *= 2), "in_proj");
        refused(&changed(&|m| m.weight.begin = u64::MAX), "in_proj lies beyond the end");
        refused(&changed(&|m| m.weight.begin = 1 << 40), "in_proj lies beyond the end");
        refused(&changed(&|m| (m.weight.rows, m.weight.columns) = (usize::MAX, usize::MAX)), "in_proj");
        refused(&changed(&|m| m.weight.dtype = Dtype::I64), "in_proj");
        refused(&changed(&|m| m.change = Some(Change::Replacement(m.weight))), "in_proj");
        if let Kind::Packed(..) = kind {
            refused(&changed(&|m| m.packing = None), "in_proj");
            for bits in [0, 1, 7, 9, 16, 64] {
                refused(&changed(&|m| m.packing.as_mut().unwrap().bits = bits), "in_proj is packed");
            }
            for group in [0, 1, 16, 48, 64, usize::MAX] {
                refused(&changed(&|m| m.packing.as_mut().unwrap().group = group), "in_proj is packed");
            }
            refused(&changed(&|m| m.packing.as_mut().unwrap().scales.rows = 1), "in_proj is packed");
            refused(
                &changed(&|m| m.packing.as_mut().unwrap().biases.dtype = Dtype::F32),
                "in_proj has scales of type F16 and biases of type F32",
            );
        }
        let mut other = made(kind, false);
        other.replaced = vec![(3, 41)];
        refused(&other, "no token 41");
        other.replaced.clear();
        other.json["context"] = json!(1u64 << 24);
        other.json["num_layers"] = json!(2);
        refused(&other, "transformer.layers.1");
    }
}

#[test]
fn adapters_that_do_not_fit_are_refused() {
    for part in 0..5 {
        let mut made = made(Kind::Floats(Float::F32), true);
        let module = made.modules.values_mut().find(|m| matches!(m.change, Some(Change::Adapter { .. }))).unwrap();
        let Some(Change::Adapter { a, b, scaling }) = &mut module.change else { unreachable!() };
        match part {
            0 => a.rows += 1,
            1 => b.columns += 1,
            2 => a.dtype = Dtype::U32,
            3 => (a.rows, b.columns) = (0, 0),
            _ => *scaling = f32::INFINITY,
        }
        assert!(made.try_load().is_err(), "{part}");
    }
}

/// float16 would hold them as its largest number, and a scale in float32 would be infinite.
#[test]
fn adapters_that_make_numbers_too_large_are_refused_with_their_name() {
    for (kind, factor) in [
        (Kind::Packed(4, 32, Float::F16), 1e9),
        (Kind::Floats(Float::F16), 1e9),
        (Kind::Packed(4, 32, Float::Bf16), f32::INFINITY),
        (Kind::Packed(4, 32, Float::F32), f32::INFINITY),
        (Kind::Floats(Float::F32), f32::NAN),
    ] {
        let mut made = made(kind, true);
        let named = made.modules.iter_mut().find_map(|(name, module)| match &mut module.change {
            Some(Change::Adapter { scaling, .. }) => {
                *scaling = factor;
                Some(name.clone())
            }
            _ => None,
        });
        let message = made.try_load().map(drop).unwrap_err().to_string();
        let file = made.changes.as_ref().unwrap().0.display();
        let what = format!("{file} makes numbers of {} too large, infinite or NaN; ", named.unwrap());
        assert!(message.starts_with(&what), "{kind:?}: {message}");
    }
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    for kind in [Kind::Packed(8, 32, Float::F32), Kind::Floats(Float::F32), Kind::Floats(Float::F16)] {
        for name in [NAME, "text_emb", "out_norm", "depformer.slices.1.emb"] {
            let made = made(kind, false);
            let module = &made.modules[name];
            let place: Place = module.packing.map_or(module.weight, |packing| packing.biases);
            let mut bytes = fs::read(&made.file.0).unwrap();
            let at = place.begin as usize + 8;
            bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
            if matches!(place.dtype, Dtype::F16) {
                bytes[at..at + 2].copy_from_slice(&0x7c00u16.to_le_bytes());
            }
            fs::write(&made.file.0, bytes).unwrap();
            refused(&made, name);
        }
    }
}

#[test]
fn files_that_are_cut_off_or_vanish_are_refused() {
    let made = made(Kind::Packed(4, 32, Float::F16), false);
    // Cut off when it was open already.
    let source = made.source().unwrap();
    let bytes = fs::read(&made.file.0).unwrap();
    fs::write(&made.file.0, &bytes[..bytes.len() - 5000]).unwrap();
    let loading = Loading { threads: 2, memory: None, progress: &|_| Ok(()) };
    assert!(Model::load(made.config(), source, &loading).is_err());
    assert!(made.try_load().is_err());
    fs::remove_file(&made.file.0).unwrap();
    assert!(made.try_load().is_err());
}

#[test]
fn too_little_memory_and_an_end_that_is_asked_for_are_errors() {
    let made = made(Kind::Packed(4, 32, Float::F16), false);
    let loading = Loading { threads: 2, memory: Some(1000), progress: &|_| panic!("nothing is read") };
    let message = Model::load(made.config(), made.source().unwrap(), &loading).unwrap_err().to_string();
    assert!(message.contains("memory"), "{message}");
    let end = |_| Err(lm::Error::Input("the loading was ended".into()));
    let loading = Loading { threads: 2, memory: None, progress: &end };
    let message = Model::load(made.config(), made.source().unwrap(), &loading).unwrap_err().to_string();
    assert_eq!(message, "The loading was ended.");
}

/// Seeded damage to places and to the configuration. What loads must also be able to step.
#[test]
fn random_damage_never_panics() {
    let mut random = fastrand::Rng::with_seed(1);
    let (packed, floats) = (made(Kind::Packed(4, 32, Float::F16), true), made(Kind::Floats(Float::Bf16), true));
    let names = |made: &Made| {
        let mut names: Vec<String> = made.modules.keys().cloned().collect();
        names.sort();
        names
    };
    let keys: Vec<String> = common::keys().as_object().unwrap().keys().cloned().collect();
    for i in 0..2000 {
        let made = if random.bool() { &packed } else { &floats };
        let mut modules = made.modules.clone();
        let mut json = made.json.clone();
        let number = |random: &mut fastrand::Rng| match random.u8(..6) {
            0 => 0,
            1 => random.usize(..300),
            2 => 1 << random.u32(..63),
            3 => usize::MAX,
            _ => 32 << random.u32(..5),
        };
        if random.u8(..4) == 0 {
            json[&keys[random.usize(..keys.len())]] = json!(number(&mut random));
        } else {
            let module = modules.get_mut(random.choice(names(made)).unwrap().as_str()).unwrap();
            let mut places = vec![&mut module.weight];
            if let Some(packing) = &mut module.packing {
                match random.u8(..4) {
                    0 => packing.bits = number(&mut random),
                    1 => packing.group = number(&mut random),
                    _ => {}
                }
                places.extend([&mut packing.scales, &mut packing.biases]);
            }
            match &mut module.change {
                Some(Change::Adapter { a, b, .. }) => places.extend([a, b]),
                Some(Change::Replacement(place)) => places.push(place),
                None => {}
            }
            let count = places.len();
            let place = &mut places[random.usize(..count)];
            match random.u8(..4) {
                0 => place.rows = number(&mut random),
                1 => place.columns = number(&mut random),
                2 => place.begin = number(&mut random) as u64,
                _ => place.dtype = random.choice([Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::U32, Dtype::I8]).unwrap(),
            }
        }
        let Ok(config) = lm::Config::from_json(&json.to_string()) else { continue };
        let changes = made.changes.as_ref().map(|file| checkpoint::File::open(&file.0).unwrap());
        let source = lm::Source::new(checkpoint::File::open(&made.file.0).unwrap(), changes, modules, Vec::new());
        let loading = Loading { threads: 1, memory: None, progress: &|_| Ok(()) };
        match Model::load(config, source, &loading) {
            Err(error) => assert!(error.to_string().ends_with('.'), "{i}: {error}"),
            Ok(model) => {
                let Ok(mut conversation) = lm::Conversation::new(&model, lm::Choices::default()) else { continue };
                let options = lm::Options { threads: 1, way: lm::Way::Int8, dot: None, rows: 1 };
                let tokens = vec![0; 1 + model.config().n_q];
                let mut codes = vec![0; model.config().dep_q];
                let conversation = &mut conversation;
                let mut turn = [lm::Turn { conversation, tokens: &tokens, recent: &[], text: 0, codes: &mut codes }];
                let mut engine = lm::Engine::new(model, options);
                engine.hear(&mut turn).and_then(|()| engine.speak(&mut turn)).unwrap();
            }
        }
    }
}
