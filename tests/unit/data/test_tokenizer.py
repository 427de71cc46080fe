import json
import subprocess
import sys

import pytest

from hf_effpt.core.errors import EffptError
from hf_effpt.data import Corpus, corpus_of, tokenizer_report, train_tokenizer
from hf_effpt.data.tokenizer_training import _alphabet

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
KINDS = ["wordpiece", "bpe"]


@pytest.fixture(params=KINDS)
def trained(request, tokenizer, byte_tokenizer):
    return tokenizer if request.param == "wordpiece" else byte_tokenizer


def test_size_and_special_tokens_are_those_of_bert(trained):
    assert len(trained) % 64 == 0
    assert sorted(trained.get_vocab().values()) == list(range(len(trained)))
    assert trained.convert_ids_to_tokens(range(5)) == SPECIAL_TOKENS
    assert [trained.pad_token_id, trained.unk_token_id, trained.cls_token_id] == [0, 1, 2]
    assert [trained.sep_token_id, trained.mask_token_id, trained.model_max_length] == [3, 4, 512]
    assert sorted(trained.all_special_ids) == [0, 1, 2, 3, 4]


def test_encodes_with_cls_and_sep_and_decodes_back(trained, documents):
    text = documents[0]
    one = trained(text)["input_ids"]
    assert [one[0], one[-1]] == [2, 3]
    assert trained.decode(one, skip_special_tokens=True).strip() == text.replace(".", " .") or (
        trained.decode(one, skip_special_tokens=True).strip() == text
    )
    pair = trained("so", "it")["input_ids"]
    assert (pair[0], pair.count(3)) == (2, 2)


def test_vocabulary_learns_the_words(trained, documents):
    report = tokenizer_report(trained, documents)
    assert report.kind == ("wordpiece" if "##e" in trained.get_vocab() else "bpe")
    assert report.vocab_size == len(trained)
    assert report.unknown_rate == 0
    letters = sum(map(len, documents)) / sum(len(text.split()) for text in documents)
    assert 1 < report.fertility < 0.7 * letters
    assert report.bytes_per_token == pytest.approx(sum(map(len, documents)) / report.tokens)


def test_report_counts_unknown_tokens(tokenizer, byte_tokenizer):
    # Three words, two of them of letters never seen.
    assert tokenizer_report(tokenizer, ["se жж 漢"]).unknown_rate > 0
    assert tokenizer_report(byte_tokenizer, ["se жж 漢"]).unknown_rate == 0
    with pytest.raises(EffptError, match="words in it"):
        tokenizer_report(tokenizer, [" "])


@pytest.mark.parametrize("kind", KINDS)
def test_same_text_same_vocabulary(kind, documents):
    texts = [*documents, "Straße ÉTÉ 漢字 αβγ", "rare ж"]
    first, second = (train_tokenizer(corpus_of(texts), vocab_size=512, kind=kind) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_continuation_letters_are_numbered_in_order(tokenizer):
    inner = [token for token in tokenizer.convert_ids_to_tokens(range(len(tokenizer))) if len(token) == 3]
    inner = [token for token in inner if token.startswith("##")]
    assert inner == sorted(inner)
    assert "##e" in inner
    # Punctuation is always a word of its own.
    assert "##." not in tokenizer.get_vocab()
    assert "." in tokenizer.get_vocab()


@pytest.mark.parametrize("kind", KINDS)
def test_lowercase_is_a_choice(kind, documents):
    folded = train_tokenizer(corpus_of(documents), vocab_size=512, kind=kind)
    kept = train_tokenizer(corpus_of([*documents, "A B A B"]), vocab_size=512, kind=kind, lowercase=False)
    assert folded("A b")["input_ids"] == folded("a B")["input_ids"]
    assert kept("A b")["input_ids"] != kept("a B")["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
def test_small_corpus_is_filled_with_unused_tokens(kind):
    trained = train_tokenizer(corpus_of(["a tiny corpus"]), vocab_size=384, kind=kind)
    tokens = trained.convert_ids_to_tokens(range(384))
    assert len(trained) == 384
    assert tokens[-1].startswith("[unused")
    assert "[unused0]" in tokens
    assert trained.unk_token_id not in trained("[unused0] a")["input_ids"] or kind == "wordpiece"
    assert tokens.index("[unused0]") not in trained("[unused0] a")["input_ids"]


def test_alphabet_is_the_commonest_characters_ties_by_code_point():
    letters = [chr(code) for code in range(0x41, 0x141) if not chr(code).isspace()]
    text = "".join(reversed(letters)) + " zz \n"
    assert _alphabet([text], limit=20) == [*letters[:19], "z"]


def test_mask_of_byte_level_bpe_takes_the_place_of_word_and_space(byte_tokenizer):
    tokens = byte_tokenizer.convert_ids_to_tokens(byte_tokenizer("e [MASK] e")["input_ids"])
    assert tokens == ["[CLS]", "Ġe", "[MASK]", "Ġe", "[SEP]"]


def test_large_corpus_is_sampled_all_over():
    read = []

    def texts():
        for index in range(1000):
            read.append(index)
            yield f"{'early' if index < 500 else 'later'} word " * 10

    corpus = Corpus("sampled", texts, lambda: "f", num_bytes=1000 * 110)
    vocab = train_tokenizer(corpus, vocab_size=256, max_bytes=11_000).get_vocab()
    assert {"early", "later"} <= set(vocab)
    read.clear()
    corpus.num_bytes = None
    vocab = train_tokenizer(corpus, vocab_size=256, max_bytes=11_000).get_vocab()
    assert "later" not in vocab
    assert len(read) <= 101


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vocab_size": 1000}, r"vocab_size=1000 must be a multiple of 64.*nearest that fits is 1024"),
        ({"vocab_size": 64}, r"at least 256 for a wordpiece tokenizer. The nearest that fits is 256"),
        ({"vocab_size": 256, "kind": "bpe"}, r"at least 320 for a bpe"),
        ({"kind": "unigram"}, r"tokenizer_kind='unigram' is not known; choose one of wordpiece, bpe"),
    ],
)
def test_impossible_settings(settings, message):
    with pytest.raises(EffptError, match=message):
        train_tokenizer(corpus_of(["text"]), **settings)


def test_empty_corpus():
    with pytest.raises(EffptError, match="is empty"):
        train_tokenizer(corpus_of([" "]))


def test_loads_in_a_clean_process_beside_a_model_config(tmp_path, documents):
    text = f"{documents[0]} [MASK] Größe 漢 \n\n x"
    expected = {}
    for kind in KINDS:
        trained = train_tokenizer(corpus_of(documents), vocab_size=512, kind=kind, out=tmp_path / kind)
        # AutoTokenizer looks at the model type too: exported folders hold both.
        (tmp_path / kind / "config.json").write_text(json.dumps({"model_type": "bert"}))
        expected[kind] = trained(text, "x")["input_ids"]
    program = (
        "import json, sys\n"
        "from transformers import AutoTokenizer\n"
        "loaded = {kind: AutoTokenizer.from_pretrained(f'{sys.argv[1]}/{kind}') for kind in ('wordpiece', 'bpe')}\n"
        "assert all(t.is_fast and t.model_max_length == 512 and t.mask_token_id == 4 for t in loaded.values())\n"
        "print(json.dumps({kind: t(sys.argv[2], 'x')['input_ids'] for kind, t in loaded.items()}))\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(tmp_path), text], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == expected
