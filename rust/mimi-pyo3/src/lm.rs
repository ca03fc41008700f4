//! The language models, as Python sees them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use checkpoint::{Dtype, File};
use lm::{Change, Dot, Float, Held, Module, Numbers, Packing, Place, Sampler, Slots, TextSampler, Turn, Way};
use numpy::{PyArray1, PyArray2, PyArray3, PyArrayMethods, PyReadonlyArray1, PyReadonlyArray2, PyUntypedArrayMethods};
use pyo3::prelude::*;

use crate::error::Failure;
use crate::{count, with_stream, without_gil};

/// The weights of a language model. They do not change, and may be shared between threads and engines.
///
/// Parameters
/// ----------
/// path : str or os.PathLike
///     A safetensors file.
/// config : str
///     The configuration, as JSON with the keys of a ``config.json``.
/// modules : dict
///     For each module's name in MLX's layout ``(weight, packing, change)``. A weight is a place, ``(dtype, rows,
///     columns, begin)``: its type as in a header, its shape (a vector has one row), and the byte of the file that it
///     begins at. Packing is ``(bits, group_size, scales, biases)`` with two places, or None. A change is ``(place,)``,
///     a matrix that replaces the weight, ``(a, b, scaling)``, a product ``scaling · b @ a`` that is added to it, or
///     None; its places are in the file ``lora``.
/// replaced : list of (int, int)
///     Rows of the text embedding, each with the row that takes its place.
/// lora : str, os.PathLike or None
///     The file of the changes.
/// threads : int or None
///     Threads that read; None takes all cores.
/// memory : int or None
///     Bytes of memory that the weights may take; None: as many as they need.
/// progress : callable or None
///     Called with the fraction of the bytes that have been read. What it raises ends the loading.
///
/// Raises
/// ------
/// OSError
///     A file is missing or cannot be read.
/// FileError
///     A file is not what it should be.
/// ModelError
///     The weights do not fit the configuration or the memory, or are not finite numbers.
#[pyclass(module = "msh_native", frozen, name = "Lm")]
pub struct PyLm(Arc<lm::Model>);

type PyPlace = (String, usize, usize, u64);
type PyPacking = (usize, usize, PyPlace, PyPlace);

#[derive(FromPyObject)]
enum PyChange {
    Adapter(PyPlace, PyPlace, f32),
    Replacement((PyPlace,)),
}

fn place((dtype, rows, columns, begin): PyPlace) -> Result<Place, Failure> {
    let dtype = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::U32]
        .into_iter()
        .find(|known| known.name() == dtype)
        .ok_or_else(|| Failure::Value(format!("{dtype} is not a type of weights.")))?;
    Ok(Place { dtype, rows, columns, begin })
}

fn module((weight, packing, change): (PyPlace, Option<PyPacking>, Option<PyChange>)) -> Result<Module, Failure> {
    let packing = packing
        .map(|(bits, group, scales, biases)| {
            Ok::<_, Failure>(Packing { bits, group, scales: place(scales)?, biases: place(biases)? })
        })
        .transpose()?;
    let change = change
        .map(|change| match change {
            PyChange::Adapter(a, b, scaling) => {
                Ok::<_, Failure>(Change::Adapter { a: place(a)?, b: place(b)?, scaling })
            }
            PyChange::Replacement((weight,)) => Ok(Change::Replacement(place(weight)?)),
        })
        .transpose()?;
    Ok(Module { weight: place(weight)?, packing, change })
}

/// Rows of an engine, at most.
const MOST_ROWS: usize = 4096;

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Loads a model, without the GIL. `progress` gets the fraction of the bytes that have been read, between looks at
/// signals; what it raises, or a signal does, ends the loading.
fn load(
    config: lm::Config,
    source: lm::Source,
    threads: usize,
    memory: Option<u64>,
    progress: Option<&Py<PyAny>>,
) -> Result<PyLm, Failure> {
    let total = source.bytes(&config).max(1);
    let done = Mutex::new(0u64);
    let raised = Mutex::new(None);
    let tell = |bytes: u64| {
        let Ok(mut done) = done.lock() else { return Ok(()) };
        *done += bytes;
        let fraction = (*done as f64 / total as f64).min(1.0);
        Python::attach(|py| {
            let told = py.check_signals();
            let told =
                told.and_then(|()| progress.map_or(Ok(()), |progress| progress.call1(py, (fraction,)).map(drop)));
            told.map_err(|error| {
                if let Ok(mut raised) = raised.lock() {
                    raised.get_or_insert(error);
                }
                lm::Error::Input("the loading was ended".into())
            })
        })
    };
    let model = lm::Model::load(config, source, &lm::Loading { threads, memory, progress: &tell });
    match raised.into_inner() {
        Ok(Some(error)) => Err(Failure::Python(error)),
        _ => Ok(PyLm(model?)),
    }
}

#[pymethods]
impl PyLm {
    #[new]
    #[pyo3(signature = (
        path, config, modules, *, replaced=vec![], lora=None, threads=None, memory=None, progress=None
    ))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        config: &str,
        modules: HashMap<String, (PyPlace, Option<PyPacking>, Option<PyChange>)>,
        replaced: Vec<(usize, usize)>,
        lora: Option<PathBuf>,
        threads: Option<i64>,
        memory: Option<u64>,
        progress: Option<Py<PyAny>>,
    ) -> Result<Self, Failure> {
        let config = lm::Config::from_json(config)?;
        let modules = modules.into_iter().map(|(name, m)| Ok((name, module(m)?))).collect::<Result<_, Failure>>()?;
        let threads = threads.map(|n| count("threads", n)).transpose()?.unwrap_or_else(cores);
        without_gil(py, || {
            let lora = lora.as_deref().map(File::open).transpose()?;
            let source = lm::Source::new(File::open(&path)?, lora, modules, replaced);
            load(config, source, threads, memory, progress.as_ref())
        })
    }

    /// Bytes of the weights in memory.
    #[getter]
    fn held_bytes(&self) -> usize {
        self.0.held_bytes()
    }

    /// Bytes of weights that a step with all codebooks reads: every matrix once, and a row of each embedding.
    #[getter]
    fn step_bytes(&self) -> usize {
        self.0.step_bytes()
    }

    /// Makes a model of seeded random weights in memory, for measurements.
    ///
    /// ``bits`` is 16 for weights that are not packed, in ``dtype`` (``"f32"``, ``"f16"`` or ``"bf16"``), else the bits
    /// of all matrices, in groups of ``group_size`` whose scales and biases are in ``dtype``. ``threads``, ``memory`` and
    /// ``progress`` are as for a file.
    #[staticmethod]
    #[pyo3(signature = (
        config, bits, group_size=64, seed=0, dtype="bf16", *, threads=None, memory=None, progress=None
    ))]
    #[allow(clippy::too_many_arguments)]
    fn random(
        py: Python<'_>,
        config: &str,
        bits: usize,
        group_size: usize,
        seed: u64,
        dtype: &str,
        threads: Option<i64>,
        memory: Option<u64>,
        progress: Option<Py<PyAny>>,
    ) -> Result<Self, Failure> {
        let hidden = lm::Config::hidden_from_json(config)?;
        let config = lm::Config::from_json(config)?;
        let float = match dtype {
            "f32" => Float::F32,
            "f16" => Float::F16,
            "bf16" => Float::Bf16,
            _ => return Err(Failure::Value(format!("dtype is {dtype}, but f32, f16 or bf16 is expected."))),
        };
        let threads = threads.map(|n| count("threads", n)).transpose()?.unwrap_or_else(cores);
        let source = lm::Source::random(lm::Random { bits, group: group_size, float, seed, hidden });
        without_gil(py, || load(config, source, threads, memory, progress.as_ref()))
    }

    /// Makes a conversation.
    ///
    /// Parameters
    /// ----------
    /// kv : str
    ///     How keys and values are held: ``"float32"``, ``"float16"`` or ``"int8"``.
    /// batch : int
    ///     Its rows in a step: 2 with guidance (given, null), else 1.
    /// text : (float, int, float, float, float, float)
    ///     The text's sampler: temperature, top-k, top-p, min-p, repetition penalty, padding bonus.
    /// audio : (float, int, float, float)
    ///     The codes' sampler: temperature, top-k, top-p, min-p.
    /// guidance : (float, bool) or None
    ///     Logits are ``null + coef · (given − null)``; the text's only if the flag says so.
    /// codebooks : int or None
    ///     Own codebooks that are computed; None: all. The codes of others are 0.
    /// seed : int
    ///     The same seed gives the same choices, whatever other conversations are in a step.
    /// padding : int or None
    ///     The text token to which the padding bonus goes.
    /// state, position : list of arrays or None, int
    ///     Begins where ``LmConversation.state()`` was taken, at that position.
    ///
    /// Raises ModelError for what the model does not have, or what does not fit it.
    #[pyo3(signature = (
        *, kv="float16", batch=1, text=(0.7, 25, 1.0, 0.0, 1.0, 0.0), audio=(0.8, 250, 1.0, 0.0), guidance=None,
        codebooks=None, seed=0, padding=None, state=None, position=0
    ))]
    #[allow(clippy::too_many_arguments)]
    fn conversation(
        &self,
        py: Python<'_>,
        kv: &str,
        batch: usize,
        text: (f32, usize, f32, f32, f32, f32),
        audio: (f32, usize, f32, f32),
        guidance: Option<(f32, bool)>,
        codebooks: Option<usize>,
        seed: u64,
        padding: Option<usize>,
        state: Option<Vec<Bound<'_, PyAny>>>,
        position: u64,
    ) -> Result<PyConversation, Failure> {
        let held = match kv {
            "float32" => Held::F32,
            "float16" => Held::F16,
            "int8" => Held::Bytes,
            _ => return Err(Failure::Value(format!("kv is {kv}, but float32, float16 or int8 is expected."))),
        };
        if batch != if guidance.is_some() { 2 } else { 1 } {
            return Err(Failure::Value(format!("batch is {batch}, but 2 is expected with guidance, else 1.")));
        }
        let (temperature, top_k, top_p, min_p, repetition_penalty, padding_bonus) = text;
        let text_sampler = Sampler { temperature, top_k, top_p, min_p };
        let (temperature, top_k, top_p, min_p) = audio;
        let choices = lm::Choices {
            held,
            text: TextSampler { sampler: text_sampler, repetition_penalty, padding_bonus },
            audio: Sampler { temperature, top_k, top_p, min_p },
            guidance: guidance.map(|(coef, text)| lm::Guidance { coef, text }),
            codebooks,
            seed,
            padding,
        };
        let mut conversation = lm::Conversation::new(&self.0, choices)?;
        if let Some(arrays) = state {
            let parts = slots(&arrays)?;
            without_gil(py, || Ok(conversation.restore(&parts, position)?))?;
        }
        Ok(PyConversation(Mutex::new(conversation)))
    }

    /// Makes an engine: threads and room for up to ``rows`` conversations at once.
    ///
    /// ``activations`` are held in products with packed weights as ``"float32"``, ``"int16"`` or ``"int8"``, or, only
    /// to compare with that, rounded to ``"bfloat16"``. ``dot`` is one of ``dots()``; None takes the fastest.
    #[pyo3(signature = (rows=1, *, activations="int16", threads=None, dot=None))]
    fn engine(
        &self,
        rows: usize,
        activations: &str,
        threads: Option<i64>,
        dot: Option<&str>,
    ) -> Result<PyEngine, Failure> {
        let way = match activations {
            "float32" => Way::Float32,
            "int16" => Way::Int16,
            "int8" => Way::Int8,
            "bfloat16" => Way::Bfloat16,
            _ => {
                let what = format!("activations are {activations}, but float32, int16 or int8 is expected.");
                return Err(Failure::Value(what));
            }
        };
        let threads = threads.map(|n| count("threads", n)).transpose()?.unwrap_or_else(cores);
        let dot = dot
            .map(|name| {
                let known = Dot::available().into_iter().find(|dot| dot.to_string() == name);
                known.ok_or_else(|| Failure::Value(format!("This machine does not have {name}.")))
            })
            .transpose()?;
        if !(1..=MOST_ROWS).contains(&rows) {
            return Err(Failure::Value(format!("rows is {rows}, but 1 to {MOST_ROWS} are expected.")));
        }
        let options = lm::Options { threads, way, dot, rows };
        Ok(PyEngine(Mutex::new(lm::Engine::new(Arc::clone(&self.0), options))))
    }
}

/// One conversation; made by ``Lm.conversation()``: its keys and values, its position, how it chooses, and the logits
/// of its newest step. It may be used by one thread at a time.
#[pyclass(module = "msh_native", frozen, name = "LmConversation")]
pub struct PyConversation(Mutex<lm::Conversation>);

#[pymethods]
impl PyConversation {
    /// Forgets all that was heard and said. A seed takes the place of the one before.
    #[pyo3(signature = (seed=None))]
    fn reset(&self, py: Python<'_>, seed: Option<u64>) -> Result<(), Failure> {
        with(py, &self.0, "LmConversation", |conversation| {
            conversation.reset(seed);
            Ok(())
        })
    }

    /// Acts as if as many positions had passed as the window has, to measure a conversation of any length.
    fn fill_window(&self, py: Python<'_>) -> Result<(), Failure> {
        with(py, &self.0, "LmConversation", |conversation| {
            conversation.fill_window();
            Ok(())
        })
    }

    /// Steps that were taken.
    #[getter]
    fn position(&self, py: Python<'_>) -> Result<u64, Failure> {
        with(py, &self.0, "LmConversation", |conversation| Ok(conversation.position()))
    }

    /// Bytes that keys and values take by now.
    fn nbytes(&self, py: Python<'_>) -> Result<usize, Failure> {
        with(py, &self.0, "LmConversation", |conversation| Ok(conversation.bytes()))
    }

    /// Adds ``added [batch, dim] float32``, or ``[1, dim]`` for all rows, to the input of each step.
    fn add_to_input(&self, py: Python<'_>, added: PyReadonlyArray2<'_, f32>) -> Result<(), Failure> {
        let added: Vec<f32> = added.as_array().iter().copied().collect();
        with(py, &self.0, "LmConversation", |conversation| conversation.add_to_input(&added))
    }

    /// Lets the layers of all rows attend to a source, as from ``LmEngine.source()``.
    fn attend_to(&self, py: Python<'_>, source: &PySource) -> Result<(), Failure> {
        with(py, &self.0, "LmConversation", |conversation| conversation.attend_to(Arc::clone(&source.0)))
    }

    /// Returns the text logits of the newest step, ``[text_card_out] float32``, mixed by guidance, before the sampler
    /// changed any. Raises ModelError before the first step.
    fn text_logits<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyArray1<f32>>, Failure> {
        let logits = with(py, &self.0, "LmConversation", |conversation| Ok(conversation.text_logits()?.to_vec()))?;
        Ok(PyArray1::from_vec(py, logits))
    }

    /// Returns the logits of the newest step's codes, ``[codes, card] float32``, of those that were computed.
    fn audio_logits<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyArray2<f32>>, Failure> {
        let (logits, card) = with(py, &self.0, "LmConversation", |conversation| {
            Ok((conversation.audio_logits()?.to_vec(), conversation.model().config().card))
        })?;
        let shape = [logits.len() / card, card];
        Ok(PyArray1::from_vec(py, logits).reshape(shape)?)
    }

    /// Returns what the extra heads say at the newest step, ``[heads, classes] float32``, probabilities.
    fn extra_heads<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyArray2<f32>>, Failure> {
        let (heads, shape) = with(py, &self.0, "LmConversation", |conversation| {
            let config = conversation.model().config();
            let shape = [config.extra_heads, config.extra_heads_dim];
            Ok((conversation.extra_heads()?.to_vec(), shape))
        })?;
        Ok(PyArray1::from_vec(py, heads).reshape(shape)?)
    }

    /// Makes another conversation that goes on from here, on its own. Only the positions filled so far are copied.
    fn copy(&self, py: Python<'_>) -> Result<Self, Failure> {
        Ok(Self(Mutex::new(with(py, &self.0, "LmConversation", |conversation| conversation.copy())?)))
    }

    /// Returns the keys and values of the positions filled so far, to be kept: for each row, for each layer, keys and
    /// values, and the scales of both with ``"int8"``, all ``[heads, positions, n]``. Half precision comes as its bits
    /// in uint16.
    fn state<'py>(&self, py: Python<'py>) -> Result<Vec<Bound<'py, PyAny>>, Failure> {
        let parts = with(py, &self.0, "LmConversation", |conversation| Ok(conversation.save()))?;
        parts
            .into_iter()
            .map(|Slots { shape, numbers }| {
                Ok(match numbers {
                    Numbers::F32(numbers) => PyArray1::from_vec(py, numbers).reshape(shape)?.into_any(),
                    Numbers::F16(numbers) => PyArray1::from_vec(py, numbers).reshape(shape)?.into_any(),
                    Numbers::Bytes(numbers) => PyArray1::from_vec(py, numbers).reshape(shape)?.into_any(),
                })
            })
            .collect()
    }

    /// Goes on at ``position`` with what ``state()`` gave of a conversation of the same model, with as many rows and
    /// keys and values in the same type.
    ///
    /// Raises ModelError if it does not fit; the conversation is at its beginning then.
    fn restore(&self, py: Python<'_>, arrays: Vec<Bound<'_, PyAny>>, position: u64) -> Result<(), Failure> {
        let parts = slots(&arrays)?;
        with(py, &self.0, "LmConversation", |conversation| conversation.restore(&parts, position))
    }
}

/// The parts of a state that was kept.
fn slots(arrays: &[Bound<'_, PyAny>]) -> Result<Vec<Slots>, Failure> {
    fn part<T: numpy::Element + Copy>(array: &Bound<'_, PyArray3<T>>) -> Result<([usize; 3], Vec<T>), Failure> {
        let array = array.try_readonly().map_err(PyErr::from)?;
        let array = array.as_array();
        let (heads, positions, width) = array.dim();
        Ok(([heads, positions, width], array.iter().copied().collect()))
    }
    let one = |array: &Bound<'_, PyAny>| {
        let (shape, numbers) = if let Ok(array) = array.cast::<PyArray3<f32>>() {
            let (shape, numbers) = part(array)?;
            (shape, Numbers::F32(numbers))
        } else if let Ok(array) = array.cast::<PyArray3<u16>>() {
            let (shape, numbers) = part(array)?;
            (shape, Numbers::F16(numbers))
        } else if let Ok(array) = array.cast::<PyArray3<i8>>() {
            let (shape, numbers) = part(array)?;
            (shape, Numbers::Bytes(numbers))
        } else {
            let what = "a state has arrays [heads, positions, n] of float32, uint16 or int8";
            return Err(Failure::Model(lm::Error::Input(what.into())));
        };
        Ok(Slots { shape, numbers })
    };
    arrays.iter().map(one).collect()
}

/// What the layers of a model attend to besides; made by ``LmEngine.source()``.
#[pyclass(module = "msh_native", frozen, name = "LmSource")]
pub struct PySource(Arc<lm::Cross>);

/// Takes conversations through steps; made by ``Lm.engine()``. It may be used by one thread at a time.
#[pyclass(module = "msh_native", frozen, name = "LmEngine")]
pub struct PyEngine(Mutex<lm::Engine>);

fn with<S: Send, T: Send>(
    py: Python<'_>,
    state: &Mutex<S>,
    name: &str,
    work: impl FnOnce(&mut S) -> lm::Result<T> + Send,
) -> Result<T, Failure> {
    with_stream(py, state, name, |state| Ok(work(state)))?.map_err(Failure::from)
}

#[pymethods]
impl PyEngine {
    /// Takes each conversation through the first half of a step. ``tokens [rows of all, 1 + n_q] int32``; −1 adds
    /// nothing. ``recent`` are the tokens that each one's repetition penalty counts, or None.
    ///
    /// Returns the text tokens ``[conversations] int32``.
    #[pyo3(signature = (conversations, tokens, recent=None))]
    fn hear<'py>(
        &self,
        py: Python<'py>,
        conversations: Vec<PyRef<'py, PyConversation>>,
        tokens: PyReadonlyArray2<'py, i32>,
        recent: Option<Vec<PyReadonlyArray1<'py, i32>>>,
    ) -> Result<Bound<'py, PyArray1<i32>>, Failure> {
        let given = Given::new(conversations.len(), &tokens, recent)?;
        let states: Vec<&Mutex<lm::Conversation>> = conversations.iter().map(|c| &c.0).collect();
        let texts = with(py, &self.0, "LmEngine", |engine| {
            let mut guards = locked(&states)?;
            let mut turns = given.turns(&mut guards, &mut [], 0)?;
            engine.hear(&mut turns)?;
            Ok(turns.iter().map(|turn| turn.text).collect::<Vec<_>>())
        })?;
        Ok(PyArray1::from_vec(py, texts))
    }

    /// Takes each conversation through a whole step, all together in one pass over the weights. Parameters are those of
    /// ``hear``.
    ///
    /// Returns the text token and the codes of each, ``[conversations, 1 + dep_q] int32``; codes that are not computed
    /// are 0. They are the same for a conversation alone and beside others. Raises ModelError if a conversation is there
    /// twice, or a token is not one of the model's; nothing has changed then.
    #[pyo3(signature = (conversations, tokens, recent=None))]
    fn step<'py>(
        &self,
        py: Python<'py>,
        conversations: Vec<PyRef<'py, PyConversation>>,
        tokens: PyReadonlyArray2<'py, i32>,
        recent: Option<Vec<PyReadonlyArray1<'py, i32>>>,
    ) -> Result<Bound<'py, PyArray2<i32>>, Failure> {
        let given = Given::new(conversations.len(), &tokens, recent)?;
        let states: Vec<&Mutex<lm::Conversation>> = conversations.iter().map(|c| &c.0).collect();
        let (said, width) = with(py, &self.0, "LmEngine", |engine| {
            let mut guards = locked(&states)?;
            let width = engine.model().config().dep_q;
            let mut codes = vec![0; guards.len() * width];
            let mut turns = given.turns(&mut guards, &mut codes, width)?;
            engine.hear(&mut turns)?;
            engine.speak(&mut turns)?;
            let said = turns.iter().flat_map(|turn| std::iter::once(turn.text).chain(turn.codes.iter().copied()));
            Ok((said.collect::<Vec<_>>(), 1 + width))
        })?;
        Ok(PyArray1::from_vec(py, said).reshape([states.len(), width])?)
    }

    /// Takes conversations through the second half of a step, with their text tokens ``texts [conversations] int32``.
    /// They need not be all that heard.
    ///
    /// Returns the codes ``[conversations, dep_q] int32``; those that are not computed are 0.
    fn speak<'py>(
        &self,
        py: Python<'py>,
        conversations: Vec<PyRef<'py, PyConversation>>,
        texts: PyReadonlyArray1<'py, i32>,
    ) -> Result<Bound<'py, PyArray2<i32>>, Failure> {
        let texts: Vec<i32> = texts.as_array().iter().copied().collect();
        if texts.len() != conversations.len() {
            return Err(Failure::Value("There must be a text token for each conversation.".into()));
        }
        let states: Vec<&Mutex<lm::Conversation>> = conversations.iter().map(|c| &c.0).collect();
        let (codes, width) = with(py, &self.0, "LmEngine", |engine| {
            let mut guards = locked(&states)?;
            let width = engine.model().config().dep_q;
            let mut codes = vec![0; texts.len() * width];
            let mut rest = &mut codes[..];
            let mut turns: Vec<Turn<'_>> = Vec::with_capacity(guards.len());
            for (guard, text) in guards.iter_mut().zip(&texts) {
                let (codes, after) = rest.split_at_mut(width);
                rest = after;
                turns.push(Turn { conversation: guard, tokens: &[], recent: &[], text: *text, codes });
            }
            engine.speak(&mut turns)?;
            Ok((codes, width))
        })?;
        Ok(PyArray1::from_vec(py, codes).reshape([texts.len(), width])?)
    }

    /// Reads the columns of a prompt, ``[n, 1 + n_q] int32``, at the beginning of a conversation. ``embedded [m, dim]
    /// float32`` are the inputs of the first ones, where they are known otherwise.
    #[pyo3(signature = (conversation, columns, embedded=None))]
    fn read(
        &self,
        py: Python<'_>,
        conversation: &PyConversation,
        columns: PyReadonlyArray2<'_, i32>,
        embedded: Option<PyReadonlyArray2<'_, f32>>,
    ) -> Result<(), Failure> {
        let columns: Vec<i32> = columns.as_array().iter().copied().collect();
        let embedded: Vec<f32> = embedded.map_or(Vec::new(), |rows| rows.as_array().iter().copied().collect());
        with(py, &self.0, "LmEngine", |engine| {
            let mut conversation = conversation
                .0
                .try_lock()
                .map_err(|_| lm::Error::Input("the conversation is being used by another thread".into()))?;
            engine.read(&mut conversation, &columns, &embedded)
        })
    }

    /// Makes what the layers attend to of a source ``[steps, dim] float32``.
    fn source(&self, py: Python<'_>, source: PyReadonlyArray2<'_, f32>) -> Result<PySource, Failure> {
        let source: Vec<f32> = source.as_array().iter().copied().collect();
        Ok(PySource(Arc::new(with(py, &self.0, "LmEngine", |engine| engine.source(&source))?)))
    }
}

/// What the conversations of a step read.
struct Given {
    tokens: Vec<i32>,
    rows: usize,
    width: usize,
    recent: Vec<Vec<i32>>,
}

impl Given {
    /// Copies what Python gives, so that the step needs nothing of it.
    fn new(
        conversations: usize,
        tokens: &PyReadonlyArray2<'_, i32>,
        recent: Option<Vec<PyReadonlyArray1<'_, i32>>>,
    ) -> Result<Self, Failure> {
        let (rows, width) = (tokens.shape()[0], tokens.shape()[1]);
        let tokens = tokens.as_array().iter().copied().collect();
        let recent: Vec<Vec<i32>> =
            recent.unwrap_or_default().iter().map(|tokens| tokens.as_array().iter().copied().collect()).collect();
        if !recent.is_empty() && recent.len() != conversations {
            return Err(Failure::Value("There must be recent tokens for each conversation.".into()));
        }
        Ok(Self { tokens, rows, width, recent })
    }

    /// The turns of the conversations, each with room for `room` of `codes`.
    fn turns<'a>(
        &'a self,
        guards: &'a mut [MutexGuard<'_, lm::Conversation>],
        codes: &'a mut [i32],
        room: usize,
    ) -> lm::Result<Vec<Turn<'a>>> {
        if guards.iter().map(|guard| guard.rows()).sum::<usize>() != self.rows {
            return Err(lm::Error::Input("there must be a column of tokens for each row of a conversation".into()));
        }
        let (mut rest, mut codes) = (&self.tokens[..], codes);
        let mut turns = Vec::with_capacity(guards.len());
        for (i, guard) in guards.iter_mut().enumerate() {
            let (tokens, after) = rest.split_at(guard.rows() * self.width);
            rest = after;
            let (own, after) = std::mem::take(&mut codes).split_at_mut(room);
            codes = after;
            let recent = self.recent.get(i).map_or(&[][..], |tokens| tokens);
            turns.push(Turn { conversation: guard, tokens, recent, text: 0, codes: own });
        }
        Ok(turns)
    }
}

/// Takes the conversations of a step.
fn locked<'a>(states: &[&'a Mutex<lm::Conversation>]) -> lm::Result<Vec<MutexGuard<'a, lm::Conversation>>> {
    let busy = || lm::Error::Input("a conversation is being used by another thread, or is there twice".into());
    states.iter().map(|state| state.try_lock().map_err(|_| busy())).collect()
}

/// Returns the names of the instructions that this machine has for products with packed weights, the fastest first.
#[pyfunction]
pub fn dots() -> Vec<String> {
    Dot::available().iter().map(Dot::to_string).collect()
}

/// Measures how fast ``threads`` threads together read memory, in bytes a second; None takes all cores.
///
/// ``size`` bytes are read again and again for ``seconds``, at least five times; the fastest time counts. Raises
/// ModelError if the system does not have so much memory.
#[pyfunction]
#[pyo3(signature = (threads=None, size=1 << 28, seconds=0.5))]
pub fn read_bandwidth(py: Python<'_>, threads: Option<i64>, size: usize, seconds: f64) -> Result<f64, Failure> {
    let threads = threads.map(|n| count("threads", n)).transpose()?.unwrap_or_else(cores);
    if !(1 << 20..=1 << 34).contains(&size) || !(0.0..=60.0).contains(&seconds) {
        return Err(Failure::Value("size is 1 MiB to 16 GiB, and seconds 0 to 60.".into()));
    }
    without_gil(py, || Ok(lm::read_bandwidth(threads, size, std::time::Duration::from_secs_f64(seconds))?))
}
