//! Whatever a file holds: it is loaded and can be used, or there is an error of one sentence. Nothing panics or hangs, and the
//! memory that is taken depends on the file's size, not on a number in it. 100,000 seeded damages of a very small codec;
//! `DAMAGED_FIRST` and `DAMAGED_COUNT` choose others. Without the test harness: its threads would count.

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use mimi::{Mimi, Options};

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: the system's allocator does the work; what is not overridden comes down to these two.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise is the same.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Numbers and other values that go wrong, as they are written in JSON.
const ODD: [&str; 30] = [
    "0",
    "1",
    "2",
    "3",
    "-1",
    "255",
    "4096",
    "65535",
    "65536",
    "1048576",
    "1048577",
    "2147483648",
    "4294967296",
    "9007199254740993",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e3",
    "1e308",
    "1e999",
    "-0.0",
    "1e-320",
    "0.5",
    "null",
    "true",
    "\"4\"",
    "[]",
    "{}",
    "NaN",
];

const NAMES: [&str; 8] = [
    "",
    "\\u0000",
    "\\n\\u2028\\u202e",
    "\\ud800",
    "x",
    "out_norm.weight",
    "é🌍\u{85}",
    "quantizer.rvq_first.vq.layers.0",
];

const DTYPES: [&str; 9] = ["F32", "F16", "BF16", "F64", "U8", "I64", "", "\\n", "F8_E4M3"];

struct Random(fastrand::Rng);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0.usize(..n)
    }

    fn of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }
}

/// A file before it is written: the header's parts as text, the configuration in its metadata, and the data.
#[derive(Clone)]
struct Draft {
    tensors: Vec<Tensor>,
    config: Vec<(String, String)>,
    data: Vec<u8>,
}

#[derive(Clone)]
struct Tensor {
    name: String,
    dtype: String,
    shape: Vec<String>,
    offsets: [String; 2],
}

impl Draft {
    /// A codec of one layer with two codebooks, one megabyte short of anything that anybody would use.
    fn good() -> Self {
        let config = [
            ("sample_rate", "100"),
            ("frame_rate", "12.5"),
            ("dimension", "4"),
            ("n_filters", "2"),
            ("ratios", "[2,2]"),
            ("kernel_size", "3"),
            ("residual_kernel_size", "3"),
            ("last_kernel_size", "3"),
            ("compress", "2"),
            ("num_heads", "2"),
            ("num_layers", "1"),
            ("dim_feedforward", "4"),
            ("context", "5"),
            ("max_period", "10000"),
            ("n_q", "2"),
            ("bins", "4"),
            ("codebook_dim", "2"),
            ("channels", "1"),
        ];
        let mut draft = Self { tensors: Vec::new(), config: Vec::new(), data: Vec::new() };
        draft.config.extend(config.map(|(key, value)| (key.to_owned(), value.to_owned())));
        let mut conv = |name: &str, shape: [usize; 3], outputs: usize| {
            draft.add(&format!("{name}.weight"), &shape);
            draft.add(&format!("{name}.bias"), &[outputs]);
        };
        conv("encoder.model.0.conv.conv", [2, 1, 3], 2);
        for (i, c) in [(1, 2), (4, 4)] {
            conv(&format!("encoder.model.{i}.block.1.conv.conv"), [c / 2, c, 3], c / 2);
            conv(&format!("encoder.model.{i}.block.3.conv.conv"), [c, c / 2, 1], c);
            conv(&format!("encoder.model.{}.conv.conv", i + 2), [2 * c, c, 4], 2 * c);
        }
        conv("encoder.model.8.conv.conv", [4, 8, 3], 4);
        conv("decoder.model.0.conv.conv", [8, 4, 3], 8);
        for (i, c) in [(2, 4), (5, 2)] {
            conv(&format!("decoder.model.{i}.convtr.convtr"), [2 * c, c, 4], c);
            conv(&format!("decoder.model.{}.block.1.conv.conv", i + 1), [c / 2, c, 3], c / 2);
            conv(&format!("decoder.model.{}.block.3.conv.conv", i + 1), [c, c / 2, 1], c);
        }
        conv("decoder.model.8.conv.conv", [1, 2, 3], 1);
        for part in ["encoder_transformer", "decoder_transformer"] {
            let name = format!("{part}.transformer.layers.0");
            draft.add(&format!("{name}.self_attn.in_proj_weight"), &[12, 4]);
            for matrix in ["self_attn.out_proj", "linear1", "linear2"] {
                draft.add(&format!("{name}.{matrix}.weight"), &[4, 4]);
            }
            for row in [
                "norm1.weight",
                "norm1.bias",
                "norm2.weight",
                "norm2.bias",
                "layer_scale_1.scale",
                "layer_scale_2.scale",
            ] {
                draft.add(&format!("{name}.{row}"), &[4]);
            }
        }
        draft.add("downsample.conv.conv.conv.weight", &[4, 4, 4]);
        draft.add("upsample.convtr.convtr.convtr.weight", &[4, 1, 4]);
        for part in ["rvq_first", "rvq_rest"] {
            draft.add(&format!("quantizer.{part}.input_proj.weight"), &[2, 4, 1]);
            draft.add(&format!("quantizer.{part}.output_proj.weight"), &[4, 2, 1]);
            draft.add(&format!("quantizer.{part}.vq.layers.0._codebook.embedding_sum"), &[4, 2]);
            draft.add(&format!("quantizer.{part}.vq.layers.0._codebook.cluster_usage"), &[4]);
        }
        draft
    }

    fn add(&mut self, name: &str, shape: &[usize]) {
        let begin = self.data.len();
        for i in 0..shape.iter().product() {
            self.data.extend(((i * 7 % 11) as f32 * 0.1 - 0.4).to_le_bytes());
        }
        self.tensors.push(Tensor {
            name: name.to_owned(),
            dtype: "F32".to_owned(),
            shape: shape.iter().map(usize::to_string).collect(),
            offsets: [begin.to_string(), self.data.len().to_string()],
        });
    }

    fn bytes(&self) -> Vec<u8> {
        let config: Vec<String> =
            self.config.iter().map(|(key, value)| format!("\\\"{key}\\\":{}", value.replace('"', "\\\""))).collect();
        let mut header = format!("{{\"__metadata__\":{{\"config\":\"{{{}}}\"}}", config.join(","));
        for Tensor { name, dtype, shape, offsets } in &self.tensors {
            header += &format!(
                ",\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":[{}],\"data_offsets\":[{}]}}",
                shape.join(","),
                offsets.join(",")
            );
        }
        header.push('}');
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        bytes.extend(&self.data);
        bytes
    }

    /// Changes one thing.
    fn damage(&mut self, random: &mut Random) {
        let i = random.below(self.tensors.len());
        let key = random.below(self.config.len());
        match random.below(12) {
            0 => self.tensors[i].offsets[random.below(2)] = random.of(&ODD).to_owned(),
            1 => {
                let shape = &mut self.tensors[i].shape;
                let at = random.below(shape.len());
                shape[at] = random.of(&ODD).to_owned();
            }
            2 => {
                let odd = random.of(&ODD).to_owned();
                self.tensors[i].shape.push(odd);
            }
            3 => self.tensors[i].dtype = random.of(&DTYPES).to_owned(),
            4 => self.tensors[i].name = random.of(&NAMES).to_owned(),
            5 => {
                self.tensors.remove(i);
            }
            6 => {
                // Another one's place, or itself again.
                let mut copy = self.tensors[i].clone();
                if random.below(2) == 0 {
                    copy.name += ".more";
                }
                self.tensors.push(copy);
            }
            7 => {
                let j = random.below(self.tensors.len());
                let offsets = self.tensors[j].offsets.clone();
                self.tensors[i].offsets = offsets;
            }
            8 => {
                let at = random.below(self.data.len() / 4) * 4;
                let odd = [f32::NAN, f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, -f32::MAX, 1e-45, 1e30, -1e20];
                self.data[at..at + 4].copy_from_slice(&odd[random.below(8)].to_le_bytes());
            }
            9 if random.below(4) == 0 => {
                let (open, close) = [("[", "]"), ("{\"a\":", "}"), ("[", "")][random.below(3)];
                let depth = 1 << random.below(16);
                self.config[key].1 = open.repeat(depth) + &close.repeat(depth);
            }
            9 if random.below(3) == 0 => {
                self.config[key].0 = random.of(&["contxt", "n_q", "é", "", "__metadata__"]).to_owned()
            }
            9 if random.below(2) == 0 => {
                let ratios =
                    ["[2,2,2]", "[1,1]", "[64,64]", "[2,1048576]", "[1,2,1,2,1]", "[4,4,4,4,4,4,4,4]", "[[2]]", "[4]"];
                self.config[4].1 = random.of(&ratios).to_owned();
            }
            9 => self.config[9].1 = random.of(&["1", "2", "4"]).to_owned(),
            _ => self.config[key].1 = random.of(&ODD).to_owned(),
        }
    }
}

fn damaged(good: &Draft, random: &mut Random) -> Vec<u8> {
    let mut draft = good.clone();
    let kind = random.below(5);
    for _ in 0..[0, 1, 1, 2 + random.below(3), 0][kind] {
        draft.damage(random);
    }
    // What no tensor's shape contradicts.
    if kind == 4 {
        draft.config[9].1 = random.of(&["1", "2"]).to_owned();
        draft.config[12].1 = random.of(&["1", "5", "250", "4095", "4096", "4097", "65536", "1048576"]).to_owned();
        draft.config[13].1 = random.of(&["1", "1.5", "1e-3", "1e300", "10000"]).to_owned();
    }
    let mut bytes = draft.bytes();
    if kind > 0 && random.below(3) > 0 {
        return bytes;
    }
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    match random.below(8) {
        0 => bytes.truncate(random.below(bytes.len())),
        1 => bytes.truncate(random.below(16)),
        2 => bytes.extend(vec![b' '; 1 + random.below(9)]),
        3 => {
            let lengths = [0, 1, 2, header as u64, 1 << 31, 1 << 32, u64::MAX, u64::MAX - 7, 100_000_001, 1 << 63, 7];
            bytes[..8].copy_from_slice(&lengths[random.below(lengths.len())].to_le_bytes());
        }
        4 => {
            let (open, depth) =
                (random.of(&["[", "{\"a\":", "{\"a\":[", "\"", "[0,", "{\"\":0,"]), 1 << random.below(17));
            let text = open.repeat(depth);
            bytes.splice(..header, [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat());
        }
        _ => {
            for _ in 0..1 + random.below(4) {
                let anywhere = random.below(4) == 0;
                let at = random.below(if anywhere { bytes.len() } else { header });
                bytes[at] =
                    if random.below(2) == 0 { random.below(256) as u8 } else { b"{}[]:,\"\\019-e. "[random.below(15)] };
            }
        }
    }
    bytes
}

/// Loads a file and uses it for a frame; says whether it could be.
fn survives(path: &std::path::Path, num_codebooks: usize) -> bool {
    let options = Options { num_codebooks, num_threads: Some(1), ..Options::default() };
    let mimi = match Mimi::load(path, &options) {
        Ok(mimi) => mimi,
        Err(error) => {
            let message = error.to_string();
            assert!(message.ends_with('.') && !message.contains(char::is_control), "{message:?}");
            assert!(message.len() < 1500, "{message}");
            return false;
        }
    };
    let pcm: Vec<f32> = (0..mimi.frame_size()).map(|i| (i as f32 * 0.7).sin()).collect();
    let codes = mimi.encoder().step(&pcm).unwrap();
    assert_eq!(codes.len(), mimi.num_codebooks());
    assert_eq!(mimi.decoder().step(&codes, codes.len()).unwrap().len(), pcm.len());
    true
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().unwrap())
}

fn main() {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("damaged.safetensors");
    let good = Draft::good();
    std::fs::write(&path, good.bytes()).unwrap();
    assert!(survives(&path, 2), "the undamaged file is a codec");

    let (first, count) = (number("DAMAGED_FIRST", 0), number("DAMAGED_COUNT", 100_000));
    let (mut loaded, mut most) = (0, 0);
    for seed in first..first + count {
        let mut random = Random(fastrand::Rng::with_seed(seed));
        let bytes = damaged(&good, &mut random);
        // Not emptied first: some file systems write such a file to the disk at once.
        let mut file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all(&bytes).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        let before = NOW.load(Ordering::Relaxed);
        MOST.store(before, Ordering::Relaxed);
        let begin = Instant::now();
        let codebooks = 1 + random.below(2);
        let result = std::panic::catch_unwind(|| survives(&path, codebooks));
        let Ok(survived) = result else { panic!("DAMAGED_FIRST={seed} DAMAGED_COUNT=1 shows it again") };
        loaded += u64::from(survived);
        let taken = MOST.load(Ordering::Relaxed) - before;
        assert!(taken < 32 * bytes.len() + (2 << 20), "seed {seed}: {taken} bytes taken for a file of {}", bytes.len());
        assert!(begin.elapsed() < Duration::from_secs(5), "seed {seed} took {:?}", begin.elapsed());
        most = most.max(taken);
    }
    std::fs::remove_file(&path).unwrap();
    assert!(count < 1000 || (count / 20..count / 2).contains(&loaded), "{loaded} of {count} loaded: a useless mixture");
    println!("{count} damaged files: {loaded} could be used, the others were refused; {most} bytes at most");
}
