//! The language models, as Python sees them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use checkpoint::{Dtype, File};
use lm::{Change, Dot, Held, Module, Packing, Place, Way};
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
///     For each module's name in MLX's layout ``(weight, packing, change)``. A weight is a place, ``(dtype, rows, columns,
///     begin)``: its type as in a header, its shape (a vector has one row), and the byte of the file that it begins at.
///     Packing is ``(bits, group_size, scales, biases)`` with two places, or None. A change is ``(place,)``, a matrix that
///     replaces the weight, ``(a, b, scaling)``, a product ``scaling · b @ a`` that is added to it, or None; its places are in
///     the file ``lora``.
/// replaced : list of (int, int)
///     Rows of the text embedding, each with the row that takes its place.
/// lora : str, os.PathLike or None
///     The file of the changes.
/// threads : int or None
///     Threads that read; None takes all cores.
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
///     The weights do not fit the configuration, or are not finite numbers.
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

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[pymethods]
impl PyLm {
    #[new]
    #[pyo3(signature = (path, config, modules, *, replaced=vec![], lora=None, threads=None, progress=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        config: &str,
        modules: HashMap<String, (PyPlace, Option<PyPacking>, Option<PyChange>)>,
        replaced: Vec<(usize, usize)>,
        lora: Option<PathBuf>,
        threads: Option<i64>,
        progress: Option<Py<PyAny>>,
    ) -> Result<Self, Failure> {
        let config = lm::Config::from_json(config)?;
        let modules = modules.into_iter().map(|(name, m)| Ok((name, module(m)?))).collect::<Result<_, Failure>>()?;
        let threads = threads.map(|n| count("threads", n)).transpose()?.unwrap_or_else(cores);
        without_gil(py, || {
            let lora = lora.as_deref().map(File::open).transpose()?;
            let source = lm::Source::new(File::open(&path)?, lora, modules, replaced);
            let total = source.bytes().max(1);
            let done = Mutex::new(0u64);
            let raised = Mutex::new(None);
            let tell = |bytes: u64| {
                let Ok(mut done) = done.lock() else { return Ok(()) };
                *done += bytes;
                let fraction = (*done as f64 / total as f64).min(1.0);
                Python::attach(|py| {
                    let told = py.check_signals();
                    let told = told.and_then(|()| progress.as_ref().map_or(Ok(()), |p| p.call1(py, (fraction,)).map(drop)));
                    told.map_err(|error| {
                        if let Ok(mut raised) = raised.lock() {
                            raised.get_or_insert(error);
                        }
                        lm::Error::Input("the loading was ended".into())
                    })
                })
            };
            let model = lm::Model::load(config, source, threads, &tell);
            if let Ok(Some(error)) = raised.into_inner() {
                return Err(Failure::Python(error));
            }
            Ok(Self(Arc::new(model?)))
        })
    }

    /// Bytes of the weights in memory.
    #[getter]
    fn held_bytes(&self) -> usize {
        self.0.held_bytes()
    }

    /// Bytes of weights that a step with all codebooks reads. Rows of embeddings are not counted.
    #[getter]
    fn step_bytes(&self) -> usize {
        self.0.step_bytes()
    }

    /// Makes a conversation, with its keys and values as ``kv``: ``"float32"``, ``"float16"`` or ``"int8"``.
    #[pyo3(signature = (kv="float16"))]
    fn conversation(&self, kv: &str) -> Result<PyConversation, Failure> {
        let held = match kv {
            "float32" => Held::F32,
            "float16" => Held::F16,
            "int8" => Held::Bytes,
            _ => return Err(Failure::Value(format!("kv is {kv}, but float32, float16 or int8 is expected."))),
        };
        Ok(PyConversation(Mutex::new(self.0.conversation(held))))
    }

    /// Makes an engine: threads and room for up to ``rows`` conversations at once.
    ///
    /// ``activations`` are held in products with packed weights as ``"float32"``, ``"int16"`` or ``"int8"``. ``dot`` is one of
    /// ``dots()``; None takes the fastest.
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
        let options = lm::Options { threads, way, dot, rows };
        Ok(PyEngine(Mutex::new(lm::Engine::new(Arc::clone(&self.0), options))))
    }
}

/// The keys, values and position of one conversation; made by ``Lm.conversation()``.
#[pyclass(module = "msh_native", frozen, name = "LmConversation")]
pub struct PyConversation(Mutex<lm::Conversation>);

#[pymethods]
impl PyConversation {
    /// Forgets all that was heard and said.
    fn reset(&self, py: Python<'_>) -> Result<(), Failure> {
        with(py, &self.0, "LmConversation", |conversation| {
            conversation.reset();
            Ok(())
        })
    }

    /// Bytes that keys and values take by now.
    fn nbytes(&self, py: Python<'_>) -> Result<usize, Failure> {
        with(py, &self.0, "LmConversation", |conversation| Ok(conversation.bytes()))
    }

    /// Adds ``added [dim] float32`` to the input of each step.
    fn add_to_input(&self, py: Python<'_>, added: PyReadonlyArray1<'_, f32>) -> Result<(), Failure> {
        let added = added.as_array().to_vec();
        with(py, &self.0, "LmConversation", |conversation| {
            conversation.add_to_input(Some(added));
            Ok(())
        })
    }

    /// Lets the layers attend to a source, as from ``LmEngine.source()``.
    fn attend_to(&self, py: Python<'_>, source: &PySource) -> Result<(), Failure> {
        with(py, &self.0, "LmConversation", |conversation| {
            conversation.attend_to(Some(Arc::clone(&source.0)));
            Ok(())
        })
    }
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
    /// Takes each conversation through the first half of a step. ``tokens [rows, 1 + n_q] int32``; −1 adds nothing.
    ///
    /// Returns the text logits ``[rows, text_card_out] float32`` and what the extra heads say, probabilities
    /// ``[rows, heads, classes] float32``.
    #[allow(clippy::type_complexity)]
    fn hear<'py>(
        &self,
        py: Python<'py>,
        conversations: Vec<PyRef<'py, PyConversation>>,
        tokens: PyReadonlyArray2<'py, i32>,
    ) -> Result<(Bound<'py, PyArray2<f32>>, Bound<'py, PyArray3<f32>>), Failure> {
        let rows = conversations.len();
        if tokens.shape()[0] != rows {
            return Err(Failure::Value("There must be a row of tokens for each conversation.".into()));
        }
        let tokens: Vec<i32> = tokens.as_array().iter().copied().collect();
        let states: Vec<&Mutex<lm::Conversation>> = conversations.iter().map(|c| &c.0).collect();
        let (logits, heads, shape) = with(py, &self.0, "LmEngine", |engine| {
            let mut guards = Vec::new();
            for state in &states {
                let guard = state.try_lock().map_err(|_| {
                    lm::Error::Input("A conversation is being used by another thread, or is there twice".into())
                })?;
                guards.push(guard);
            }
            let width = tokens.len() / rows.max(1);
            let mut all: Vec<lm::Row<'_>> = guards
                .iter_mut()
                .zip(tokens.chunks_exact(width.max(1)))
                .map(|(conversation, tokens)| lm::Row { conversation, tokens })
                .collect();
            engine.hear(&mut all)?;
            let config = engine.model().config();
            let shape = [rows, config.extra_heads, config.extra_heads_dim];
            let heads = engine.extra_heads(rows).to_vec();
            Ok((engine.text_logits(rows).to_vec(), heads, shape))
        })?;
        let columns = logits.len() / rows.max(1);
        Ok((
            PyArray1::from_vec(py, logits).reshape([rows, columns])?,
            PyArray1::from_vec(py, heads).reshape(shape)?,
        ))
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
            let mut conversation = conversation.0.try_lock().map_err(|_| {
                lm::Error::Input("The conversation is being used by another thread".into())
            })?;
            engine.read(&mut conversation, &columns, &embedded)
        })
    }

    /// Makes what the layers attend to of a source ``[steps, dim] float32``.
    fn source(&self, py: Python<'_>, source: PyReadonlyArray2<'_, f32>) -> Result<PySource, Failure> {
        let source: Vec<f32> = source.as_array().iter().copied().collect();
        Ok(PySource(Arc::new(with(py, &self.0, "LmEngine", |engine| engine.source(&source))?)))
    }

    /// Takes the rows of the last ``hear`` through the second half of the step, with the text tokens that they said.
    ///
    /// Chooses the first ``codebooks`` codes of each row, ``[rows, codebooks] int32``. ``sampler`` is ``(temperature, top_k,
    /// top_p, min_p)``; ``seeds [rows]`` and ``position`` choose the random numbers. With ``guidance`` the rows are pairs, and
    /// the codes of a pair are chosen from ``null + guidance · (given − null)``.
    ///
    /// Returns also the logits, ``[codebooks, rows, card] float32``.
    #[pyo3(signature = (texts, codebooks, sampler, seeds, position, guidance=None))]
    #[allow(clippy::too_many_arguments, clippy::type_complexity)]
    fn speak<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<i32>,
        codebooks: usize,
        sampler: (f32, usize, f32, f32),
        seeds: Vec<u64>,
        position: u64,
        guidance: Option<f32>,
    ) -> Result<(Bound<'py, PyArray2<i32>>, Bound<'py, PyArray3<f32>>), Failure> {
        let (temperature, top_k, top_p, min_p) = sampler;
        let sampler = lm::Sampler { temperature, top_k, top_p, min_p };
        let rows = texts.len();
        if seeds.len() != rows || guidance.is_some() && !rows.is_multiple_of(2) {
            return Err(Failure::Value("There must be a seed for each row, and with guidance pairs of rows.".into()));
        }
        let (codes, kept, card) = with(py, &self.0, "LmEngine", |engine| {
            let card = engine.model().config().card;
            let mut codes = vec![0; rows * codebooks];
            let mut kept = Vec::with_capacity(rows * codebooks * card);
            let mut room = lm::Room::new(card);
            let mut noise: Vec<lm::Noise> = seeds.iter().map(|seed| lm::Noise::new(*seed, position)).collect();
            let mut choose = |_: usize, logits: &mut [f32], codes: &mut [i32]| {
                if let Some(coef) = guidance {
                    for pair in logits.chunks_exact_mut(2 * card) {
                        let (given, null) = pair.split_at_mut(card);
                        for (given, null) in given.iter_mut().zip(null) {
                            *given = *null + coef * (*given - *null);
                            *null = *given;
                        }
                    }
                }
                kept.extend_from_slice(logits);
                let step = if guidance.is_some() { 2 } else { 1 };
                for row in (0..rows).step_by(step) {
                    let code = sampler.choose(&logits[row * card..][..card], &mut noise[row], &mut room) as i32;
                    codes[row..row + step].fill(code);
                }
            };
            engine.speak(&texts, codebooks, &mut choose, &mut codes)?;
            Ok((codes, kept, card))
        })?;
        Ok((
            PyArray1::from_vec(py, codes).reshape([rows, codebooks])?,
            PyArray1::from_vec(py, kept).reshape([codebooks, rows, card])?,
        ))
    }
}

/// Returns the names of the instructions that this machine has for products with packed weights, the fastest first.
#[pyfunction]
pub fn dots() -> Vec<String> {
    Dot::available().iter().map(Dot::to_string).collect()
}
