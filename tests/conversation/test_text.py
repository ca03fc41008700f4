"""Text: pieces to characters to words."""

import io

import pytest
import sentencepiece
from paths import DEMO

from msh_mlx import InputError, TextStream, Word, Words, load_tokenizer


@pytest.fixture(scope="module")
def with_bytes(tmp_path_factory):
    """A SentencePiece model that falls back to bytes, trained here."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        sentence_iterator=iter(["hello world", "the world says hello", "low yellow hollow"] * 50),
        model_writer=model,
        vocab_size=300,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path = tmp_path_factory.mktemp("text") / "tokenizer.model"
    path.write_bytes(model.getvalue())
    return load_tokenizer(path)


@pytest.mark.parametrize("text", ["hello world", "hello 🌍 world", "naïve façade — “日本語”", "a\u0301 e\u0301"])
def test_pieces_become_the_text_again(text, with_bytes):
    stream = TextStream(with_bytes, {0, 3})
    parts = [stream.push(token) for token in with_bytes.EncodeAsIds(text)]
    normal = with_bytes.Normalize(text).replace("\u2581", " ")
    assert "".join(parts).strip() == normal.strip()
    assert stream.flush() == ""
    # Nothing half comes out on the way: every part is whole characters of the text.
    assert all("\ufffd" not in part and "<0x" not in part for part in parts)


def test_bytes_that_make_no_character(with_bytes):
    stream = TextStream(with_bytes, {0, 3})

    def byte(value):
        return with_bytes.PieceToId(f"<0x{value:02X}>")

    hello = with_bytes.EncodeAsIds("hello")
    assert [stream.push(byte(0xE2)), stream.push(byte(0x82))] == ["", ""]
    assert stream.push(hello[0]) == "\ufffd" + with_bytes.IdToPiece(hello[0]).replace("\u2581", " ")
    assert [stream.push(byte(b)) for b in (0xE2, 0x82, 0xAC)] == ["", "", "€"]
    assert stream.push(byte(0xE2)) == ""
    assert stream.flush() == "\ufffd"
    assert stream.flush() == ""


def test_padding_and_control_tokens_are_silent():
    tokenizer = load_tokenizer(DEMO / "tokenizer.model")
    stream = TextStream(tokenizer, {0, 3})
    assert [stream.push(token) for token in (0, 1, 2, 3)] == [""] * 4
    assert stream.push(11) == " seven"


def test_words_have_the_time_of_their_first_piece():
    words = Words()
    out = []
    for time, text in [(0.08, " se"), (0.16, "ven"), (0.4, ""), (0.48, " eight"), (0.56, "y-"), (0.64, "two three")]:
        out += words.push(time, text)
    assert out == [Word(0.08, "seven"), Word(0.48, "eighty-two")]
    assert words.flush() == [Word(0.64, "three")]
    assert words.flush() == []
    assert words.push(1.0, "   ") == []


def test_wrong_tokenizers(tmp_path):
    for name, data, says in [("a", b"", "not a SentencePiece"), ("b", b"no tokenizer" * 9, "not a SentencePiece")]:
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=says):
            load_tokenizer(tmp_path / name)
    cut = tmp_path / "cut"
    cut.write_bytes((DEMO / "tokenizer.model").read_bytes()[:1000])
    with pytest.raises(InputError, match="not a SentencePiece"):
        load_tokenizer(cut)
    with pytest.raises(InputError, match="There is no tokenizer"):
        load_tokenizer(tmp_path / "none")
    with pytest.raises(InputError, match="is a folder"):
        load_tokenizer(tmp_path)
