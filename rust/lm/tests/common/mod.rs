//! Small random models in files, and the same step in float64, slow and obvious.

#![allow(dead_code)] // each test uses a part

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use checkpoint::{Dtype, File};
use lm::{Change, Config, Float, Loading, Model, Module, Packing, Place, Source};
use serde_json::{Value, json};

/// Bytes of the header of every file here.
const HEADER: usize = 1 << 17;

/// How matrices are stored.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    Floats(Float),
    /// Bits, group, and the type of scales and biases.
    Packed(usize, usize, Float),
}

/// A file that is deleted at the end.
pub struct Temporary(pub PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// A safetensors file in the making.
pub struct Maker {
    pub random: fastrand::Rng,
    data: Vec<u8>,
    header: serde_json::Map<String, Value>,
}

impl Maker {
    pub fn new(seed: u64) -> Self {
        Self { random: fastrand::Rng::with_seed(seed), data: Vec::new(), header: serde_json::Map::new() }
    }

    fn put(&mut self, dtype: Dtype, rows: usize, columns: usize, bytes: &[u8]) -> Place {
        let begin = self.data.len();
        self.data.extend(bytes);
        let name = format!("t{}", self.header.len());
        let offsets = [begin, self.data.len()];
        self.header.insert(name, json!({"dtype": dtype.name(), "shape": [rows, columns], "data_offsets": offsets}));
        Place { dtype, rows, columns, begin: (8 + HEADER + begin) as u64 }
    }

    /// Floats near `around`, with a spread.
    pub fn floats(&mut self, rows: usize, columns: usize, float: Float, around: f32, spread: f32) -> (Place, Vec<f64>) {
        let numbers = || around + spread * (2.0 * self.random.f32() - 1.0);
        let bytes: Vec<u8> =
            std::iter::repeat_with(numbers).take(rows * columns).flat_map(|x| float.encode(x)).collect();
        let values = float.decode(&bytes).into_iter().map(f64::from).collect();
        let dtype = match float {
            Float::F32 => Dtype::F32,
            Float::F16 => Dtype::F16,
            Float::Bf16 => Dtype::Bf16,
        };
        (self.put(dtype, rows, columns, &bytes), values)
    }

    pub fn matrix(&mut self, rows: usize, columns: usize, kind: Kind) -> (Module, Vec<f64>) {
        let spread = (3.0 / columns as f32).sqrt();
        match kind {
            Kind::Floats(float) => {
                let (weight, values) = self.floats(rows, columns, float, 0.0, spread);
                (Module { weight, packing: None, change: None }, values)
            }
            Kind::Packed(bits, group, float) => {
                let words: Vec<u8> = (0..rows * columns * bits / 8).map(|_| self.random.u8(..)).collect();
                let step = 2.0 * spread / ((1 << bits) - 1) as f32;
                let (scales, scale) = self.floats(rows, columns / group, float, step, 0.2 * step);
                let (biases, bias) = self.floats(rows, columns / group, float, -spread, 0.2 * spread);
                let weight = self.put(Dtype::U32, rows, columns * bits / 32, &words);
                let values = (0..rows * columns)
                    .map(|i| f64::from(kernels::number(&words, i, bits)) * scale[i / group] + bias[i / group])
                    .collect();
                (Module { weight, packing: Some(Packing { bits, group, scales, biases }), change: None }, values)
            }
        }
    }

    pub fn write(mut self) -> Temporary {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("lm-test-{}-{number}.safetensors", std::process::id()));
        let mut text = Value::Object(std::mem::take(&mut self.header)).to_string().into_bytes();
        assert!(text.len() <= HEADER);
        text.resize(HEADER, b' ');
        let mut bytes = (HEADER as u64).to_le_bytes().to_vec();
        bytes.extend(text);
        bytes.extend(self.data);
        fs::write(&path, bytes).unwrap();
        Temporary(path)
    }
}

/// A model's weights in float64, and its file.
pub struct Made {
    pub file: Temporary,
    pub changes: Option<Temporary>,
    pub modules: HashMap<String, Module>,
    pub values: HashMap<String, Vec<f64>>,
    pub json: Value,
    pub replaced: Vec<(usize, usize)>,
    pub kind: Kind,
}

pub fn keys() -> Value {
    json!({
        "dim": 64, "num_layers": 2, "num_heads": 4, "context": 6, "max_period": 100.0, "text_card": 40, "card": 24,
        "n_q": 5, "dep_q": 3, "depformer_dim": 32, "depformer_num_layers": 2, "depformer_num_heads": 2
    })
}

pub fn changed(changes: Value) -> Value {
    let mut all = keys();
    for (key, value) in changes.as_object().unwrap() {
        all[key] = value.clone();
    }
    all
}

/// Makes a model. With `adapted`, some matrices are changed by a second file.
pub fn make(json: Value, kind: Kind, seed: u64, adapted: bool) -> Made {
    let config = Config::from_json(&json.to_string()).unwrap();
    let mut maker = Maker::new(seed);
    let mut changes = adapted.then(|| Maker::new(seed + 1));
    let (mut modules, mut values) = (HashMap::new(), HashMap::new());
    let mut count = 0;
    let mut add = |name: String, rows: usize, columns: usize| {
        let vector = rows == 0;
        let (mut module, mut all) = if vector {
            let around = if name.ends_with(".bias") { 0.0 } else { 1.0 };
            let (weight, all) = maker.floats(1, columns, Float::F32, around, 0.3);
            (Module { weight, packing: None, change: None }, all)
        } else {
            maker.matrix(rows, columns, kind)
        };
        count += 1;
        if let Some(changes) = changes.as_mut().filter(|_| !vector && name.contains("layers") && count % 2 == 0) {
            if count % 4 == 0 {
                let (weight, new) = changes.floats(rows, columns, Float::F32, 0.0, (3.0 / columns as f32).sqrt());
                (module.change, all) = (Some(Change::Replacement(weight)), new);
            } else {
                let (rank, scaling) = (3, 0.5);
                let (a, left) = changes.floats(rank, columns, Float::Bf16, 0.0, 0.3);
                let (b, right) = changes.floats(rows, rank, Float::F16, 0.0, 0.3);
                module.change = Some(Change::Adapter { a, b, scaling });
                for (i, value) in all.iter_mut().enumerate() {
                    let sum: f64 =
                        (0..rank).map(|r| right[i / columns * rank + r] * left[r * columns + i % columns]).sum();
                    *value += f64::from(scaling) * sum;
                }
            }
        }
        modules.insert(name.clone(), module);
        values.insert(name, all);
    };
    let (dim, low) = (config.dim, config.depformer_rank.unwrap_or(config.depformer_dim));
    add("text_emb".into(), config.text_card + 1, dim);
    if config.demux_second_stream {
        add("text_emb.out1".into(), dim, dim);
        add("text_emb.out2".into(), dim, dim);
    }
    (0..config.n_q).for_each(|k| add(format!("audio_embs.{k}"), config.card + 1, dim));
    let mut layer = |name: String, dim: usize, heads: usize, group: usize, hidden: usize, cross: bool| {
        let width = dim / heads * (heads + 2 * heads / group);
        for (part, rows, columns) in [
            ("norm1", 0, dim),
            ("self_attn.in_proj", width, dim),
            ("self_attn.out_proj", dim, dim),
            ("norm2", 0, dim),
            ("gating.linear_in", 2 * hidden, dim),
            ("gating.linear_out", dim, hidden),
        ] {
            add(format!("{name}.{part}"), rows, columns);
        }
        if cross {
            add(format!("{name}.norm_cross"), 0, dim);
            add(format!("{name}.norm_cross.bias"), 0, dim);
            add(format!("{name}.cross_attention.in_proj"), 3 * dim, dim);
            add(format!("{name}.cross_attention.out_proj"), dim, dim);
        }
    };
    for i in 0..config.num_layers {
        let name = format!("transformer.layers.{i}");
        layer(name, dim, config.num_heads, config.kv_repeat, 128, config.cross_attention);
    }
    for (number, owner) in (0..=*config.slices.iter().max().unwrap_or(&0))
        .filter_map(|n| config.slices.iter().position(|slice| *slice == n).map(|owner| (n, owner)))
    {
        let _ = number;
        for i in 0..config.depformer_num_layers {
            let name = format!("depformer.slices.{owner}.transformer.layers.{i}");
            layer(name, config.depformer_dim, config.depformer_num_heads, config.depformer_kv_repeat, 128, false);
        }
    }
    let owners: Vec<usize> =
        (0..config.dep_q).filter(|k| config.slices[..*k].iter().all(|s| *s != config.slices[*k])).collect();
    for k in 0..config.dep_q {
        let name = format!("depformer.slices.{k}");
        if owners.contains(&k) {
            add(format!("{name}.linear_in"), config.depformer_dim, dim);
        }
        let demuxed = k == 0 && config.demux_second_stream;
        add(format!("{name}.emb"), if k == 0 { config.text_card } else { config.card } + 1, low);
        if demuxed {
            add(format!("{name}.emb.out1"), config.depformer_dim, low);
            add(format!("{name}.emb.out2"), config.depformer_dim, low);
        }
        if config.depformer_rank.is_some() {
            add(format!("{name}.emb.low_rank"), config.depformer_dim, low);
        }
        if config.depformer_norm {
            add(format!("{name}.norm"), 0, config.depformer_dim);
            add(format!("{name}.norm.bias"), 0, config.depformer_dim);
        }
        add(format!("{name}.linear_out"), config.card, config.depformer_dim);
    }
    add("out_norm".into(), 0, dim);
    add("text_linear".into(), config.text_card_out, dim);
    (0..config.extra_heads).for_each(|i| add(format!("extra_heads.{i}"), config.extra_heads_dim, dim));
    let (file, changes) = (maker.write(), changes.map(Maker::write));
    Made { file, changes, modules, values, json, replaced: Vec::new(), kind }
}

impl Made {
    pub fn config(&self) -> Config {
        Config::from_json(&self.json.to_string()).unwrap()
    }

    pub fn source(&self) -> lm::Result<Source> {
        let changes = self.changes.as_ref().map(|file| File::open(&file.0)).transpose()?;
        Ok(Source::new(File::open(&self.file.0)?, changes, self.modules.clone(), self.replaced.clone()))
    }

    pub fn try_load(&self) -> lm::Result<Arc<Model>> {
        let loading = Loading { threads: 2, memory: None, progress: &|_| Ok(()) };
        Model::load(self.config(), self.source()?, &loading)
    }

    pub fn load(&self) -> Arc<Model> {
        self.try_load().unwrap()
    }
}

/// A conversation in float64.
pub struct Slow<'a> {
    made: &'a Made,
    pub config: Config,
    /// Keys and values of all positions, by layer.
    past: Vec<Vec<[Vec<f64>; 2]>>,
    pub added: Option<Vec<f64>>,
    pub source: Option<Vec<Vec<f64>>>,
    position: usize,
    pub h: Vec<f64>,
}

pub fn rms(x: &[f64], weight: &[f64]) -> Vec<f64> {
    let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight).map(|(x, w)| x / (mean + 1e-8).sqrt() * w).collect()
}

fn layer_norm(x: &[f64], weight: &[f64], bias: &[f64]) -> Vec<f64> {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
    x.iter().zip(weight.iter().zip(bias)).map(|(x, (w, b))| (x - mean) / (variance + 1e-5).sqrt() * w + b).collect()
}

pub fn softmax(x: &[f64]) -> Vec<f64> {
    let most = x.iter().fold(f64::NEG_INFINITY, |a, b| a.max(*b));
    let total: f64 = x.iter().map(|x| (x - most).exp()).sum();
    x.iter().map(|x| (x - most).exp() / total).collect()
}

fn attend(q: &[f64], keys: &[&[f64]], values: &[&[f64]]) -> Vec<f64> {
    let scores: Vec<f64> =
        keys.iter().map(|k| q.iter().zip(*k).map(|(q, k)| q * k).sum::<f64>() / (q.len() as f64).sqrt()).collect();
    let weights = softmax(&scores);
    (0..q.len()).map(|i| values.iter().zip(&weights).map(|(v, w)| w * v[i]).sum()).collect()
}

fn plus(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

impl<'a> Slow<'a> {
    pub fn new(made: &'a Made) -> Self {
        let config = made.config();
        let past = (0..config.num_layers).map(|_| Vec::new()).collect();
        Self { made, config, past, added: None, source: None, position: 0, h: Vec::new() }
    }

    fn get(&self, name: &str) -> &'a [f64] {
        &self.made.values[name]
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        self.get(name).chunks_exact(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
    }

    fn row(&self, name: &str, row: usize, width: usize) -> Vec<f64> {
        let row =
            self.made.replaced.iter().filter(|r| name == "text_emb" && r.0 == row).map(|r| r.1).next().unwrap_or(row);
        self.get(name)[row * width..(row + 1) * width].to_vec()
    }

    /// An embedding of `rows` rows whose table is `low` wide.
    fn embedding(&self, name: &str, token: i32, rows: usize, low: usize, width: usize, demuxed: bool) -> Vec<f64> {
        let Ok(token) = usize::try_from(token) else { return vec![0.0; width] };
        if demuxed {
            let mut x = self.linear(&format!("{name}.out1"), &self.row(name, token % rows, low));
            if token / rows > 0 {
                plus(&mut x, &self.linear(&format!("{name}.out2"), &self.row(name, token / rows - 1, low)));
            }
            return x;
        }
        let row = self.row(name, token, low);
        if low < width { self.linear(&format!("{name}.low_rank"), &row) } else { row }
    }

    /// Turns a head at a position.
    fn turned(&self, head: &[f64], position: usize) -> Vec<f64> {
        let (d, mut out) = (head.len(), head.to_vec());
        for i in 0..d / 2 {
            let angle = position as f64 * self.config.max_period.powf(-2.0 * i as f64 / d as f64);
            let (a, b) = if self.config.rope_concat { (i, i + d / 2) } else { (2 * i, 2 * i + 1) };
            out[a] = head[a] * angle.cos() - head[b] * angle.sin();
            out[b] = head[a] * angle.sin() + head[b] * angle.cos();
        }
        out
    }

    /// Queries, keys and values of a row, turned if there is a position.
    fn projected(&self, name: &str, x: &[f64], heads: usize, group: usize, position: Option<usize>) -> [Vec<f64>; 3] {
        let d = x.len() / heads;
        let all = self.linear(&format!("{name}.self_attn.in_proj"), &rms(x, self.get(&format!("{name}.norm1"))));
        let (q, rest) = all.split_at(heads * d);
        let (k, v) = rest.split_at(heads / group * d);
        let turn = |x: &[f64]| match position {
            Some(position) => x.chunks_exact(d).flat_map(|head| self.turned(head, position)).collect(),
            None => x.to_vec(),
        };
        [turn(q), turn(k), v.to_vec()]
    }

    fn heads(q: &[f64], seen: &[[Vec<f64>; 2]], heads: usize, group: usize) -> Vec<f64> {
        let d = q.len() / heads;
        (0..heads)
            .flat_map(|h| {
                let part = |j: usize| -> Vec<&[f64]> { seen.iter().map(|kv| &kv[j][h / group * d..][..d]).collect() };
                attend(&q[h * d..][..d], &part(0), &part(1))
            })
            .collect()
    }

    fn feed_forward(&self, name: &str, x: &mut [f64]) {
        let wide = self.linear(&format!("{name}.gating.linear_in"), &rms(x, self.get(&format!("{name}.norm2"))));
        let (a, b) = wide.split_at(wide.len() / 2);
        let gated: Vec<f64> = a.iter().zip(b).map(|(a, b)| a / (1.0 + (-a).exp()) * b).collect();
        plus(x, &self.linear(&format!("{name}.gating.linear_out"), &gated));
    }

    /// The text logits, and what the extra heads say.
    pub fn hear(&mut self, column: &[i32]) -> (Vec<f64>, Vec<f64>) {
        let config = self.config.clone();
        let dim = config.dim;
        let mut x = self.embedding("text_emb", column[0], config.text_card + 1, dim, dim, config.demux_second_stream);
        for (k, code) in column[1..].iter().enumerate() {
            plus(&mut x, &self.embedding(&format!("audio_embs.{k}"), *code, config.card + 1, dim, dim, false));
        }
        self.run(x)
    }

    /// The same from an input that is known.
    pub fn run(&mut self, mut x: Vec<f64>) -> (Vec<f64>, Vec<f64>) {
        let config = self.config.clone();
        if let Some(added) = &self.added {
            plus(&mut x, added);
        }
        for l in 0..config.num_layers {
            let name = format!("transformer.layers.{l}");
            let [q, k, v] = self.projected(&name, &x, config.num_heads, config.kv_repeat, Some(self.position));
            self.past[l].push([k, v]);
            let seen = &self.past[l][self.past[l].len().saturating_sub(config.context)..];
            let attended = Self::heads(&q, seen, config.num_heads, config.kv_repeat);
            plus(&mut x, &self.linear(&format!("{name}.self_attn.out_proj"), &attended));
            if let Some(source) = &self.source {
                let weights = self.get(&format!("{name}.cross_attention.in_proj"));
                let dim = config.dim;
                let times = |part: usize, x: &[f64]| -> Vec<f64> {
                    let rows = weights[part * dim * dim..(part + 1) * dim * dim].chunks_exact(dim);
                    rows.map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
                };
                let weight = self.get(&format!("{name}.norm_cross"));
                let normed = layer_norm(&x, weight, self.get(&format!("{name}.norm_cross.bias")));
                let seen: Vec<[Vec<f64>; 2]> = source.iter().map(|x| [times(1, x), times(2, x)]).collect();
                let attended = Self::heads(&times(0, &normed), &seen, config.num_heads, 1);
                plus(&mut x, &self.linear(&format!("{name}.cross_attention.out_proj"), &attended));
            }
            self.feed_forward(&name, &mut x);
        }
        self.position += 1;
        self.h = rms(&x, self.get("out_norm"));
        let heads = (0..config.extra_heads).flat_map(|i| softmax(&self.linear(&format!("extra_heads.{i}"), &self.h)));
        (self.linear("text_linear", &self.h), heads.collect())
    }

    /// The logits of all codebooks, after a text and codes that were chosen.
    pub fn speak(&self, text: i32, codes: &[i32]) -> Vec<Vec<f64>> {
        let config = &self.config;
        let (dim, low) = (config.depformer_dim, config.depformer_rank.unwrap_or(config.depformer_dim));
        let mut past: Vec<Vec<[Vec<f64>; 2]>> = vec![Vec::new(); config.depformer_num_layers];
        let mut previous = text;
        let mut all = Vec::new();
        for k in 0..config.dep_q {
            let owner = config.slices.iter().position(|slice| *slice == config.slices[k]).unwrap();
            let own = format!("depformer.slices.{k}");
            let rows = if k == 0 { config.text_card } else { config.card } + 1;
            let mut x = self.linear(&format!("depformer.slices.{owner}.linear_in"), &self.h);
            let demuxed = k == 0 && config.demux_second_stream;
            plus(&mut x, &self.embedding(&format!("{own}.emb"), previous, rows, low, dim, demuxed));
            for (l, past) in past.iter_mut().enumerate() {
                let name = format!("depformer.slices.{owner}.transformer.layers.{l}");
                let (heads, group) = (config.depformer_num_heads, config.depformer_kv_repeat);
                let [q, key, value] = self.projected(&name, &x, heads, group, None);
                past.push([key, value]);
                let attended = Self::heads(&q, past, heads, group);
                plus(&mut x, &self.linear(&format!("{name}.self_attn.out_proj"), &attended));
                self.feed_forward(&name, &mut x);
            }
            if config.depformer_norm {
                x = layer_norm(&x, self.get(&format!("{own}.norm")), self.get(&format!("{own}.norm.bias")));
            }
            all.push(self.linear(&format!("{own}.linear_out"), &x));
            previous = codes[k];
        }
        all
    }
}

/// A random column of tokens, as many as a model has streams; sometimes none.
pub fn column(random: &mut fastrand::Rng, config: &Config) -> Vec<i32> {
    let rows = config.text_card as i32 + 1;
    let text = if config.demux_second_stream { random.i32(-1..rows * (rows + 1)) } else { random.i32(-1..rows) };
    let codes = (0..config.n_q).map(|_| random.i32(-1..config.card as i32 + 1));
    let codes: Vec<i32> = codes.collect();
    std::iter::once(text).chain(codes).collect()
}
