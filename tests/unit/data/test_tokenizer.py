import json
import random

import pytest
from transformers import AutoTokenizer

from hf_effpt.core.errors import EffptError
from hf_effpt.data import Corpus, corpus_of, tokenizer_report, train_tokenizer
from hf_effpt.data.tokenizer_report import report_of_corpus
from hf_effpt.data.tokenizer_training import _alphabet, _counts
from tests.processes import run

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


def test_report_counts_unknown_characters(tokenizer, byte_tokenizer):
    # Five characters in three words, two of which are of letters never seen.
    assert tokenizer_report(tokenizer, ["se жж 漢"]).unknown_rate == pytest.approx(3 / 5)
    assert tokenizer_report(byte_tokenizer, ["se жж 漢"]).unknown_rate == 0
    with pytest.raises(EffptError, match="words in it"):
        tokenizer_report(tokenizer, [" "])


@pytest.mark.parametrize("accents", [True, False])
def test_report_counts_what_normalisation_drops(accents):
    """One of four letters has an accent, and one of five characters is of no width; upper case is no loss."""
    trained = train_tokenizer(corpus_of(["ABE abe é"] * 9), vocab_size=256, strip_accents=accents)
    report = tokenizer_report(trained, ["ABE é"])
    assert report.strip_accents is accents
    assert report.unknown_rate == (0.25 if accents else 0.0)
    assert tokenizer_report(trained, ["AB\u200de a"]).unknown_rate == pytest.approx(1 / 5)


ENGLISH = [*["the cat sat on the mat in the hall and the dog ate the pie, as they do in the old town"] * 30, "a café"]
GERMAN = ["die größere Tür schließt über Mäusen, während schöne Bäume grünen"] * 30


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("texts", "strips"), [(ENGLISH, True), (GERMAN, False), (["nguyễn văn ôn"] * 30, False), (["abc de"] * 30, True)]
)
def test_accents_are_kept_unless_the_text_is_english_or_has_none(kind, texts, strips):
    trained = train_tokenizer(corpus_of(texts), vocab_size=384, kind=kind)
    told = {
        choice: tokenizer_report(
            train_tokenizer(corpus_of(texts), vocab_size=384, kind=kind, strip_accents=choice), texts
        )
        for choice in (True, False)
    }
    report = tokenizer_report(trained, texts)
    assert report.strip_accents == (strips and kind == "wordpiece")
    assert (told[True].strip_accents, told[False].strip_accents) == (True, False)
    assert told[False].unknown_rate == 0
    assert (told[True].unknown_rate > 0) == (texts != ["abc de"] * 30)
    assert trained("für" if texts is GERMAN else "a", add_special_tokens=False)["input_ids"]
    if texts is GERMAN:
        assert trained("Tür")["input_ids"] != trained("Tur")["input_ids"]


FRENCH = "à la fenêtre, les élèves regardaient déjà les bêtes près du chêne, où le père coupait du blé"


@pytest.mark.parametrize("joint", ["\n", " "])
@pytest.mark.parametrize(("foreign", "kept"), [(0, False), (1, False), (6, True)])
def test_accents_are_kept_once_some_of_the_text_is_not_english(foreign, kept, joint):
    """Six of 827 lines, in which 0.5 % of the letters are not ASCII. A café and one quotation change nothing."""
    plain = "the ship of the king was in the harbour and the men had to wait for it"
    cafe = "the café of Señor García is in the street that leads to the château"
    lines = [plain] * 800 + [cafe] * 20
    lines += [f"{FRENCH}{joint}{FRENCH}"] * foreign
    random.Random(1).shuffle(lines)
    trained = train_tokenizer(corpus_of(lines), vocab_size=320)
    assert tokenizer_report(trained, [FRENCH]).strip_accents is not kept
    assert (trained("père")["input_ids"] != trained("pere")["input_ids"]) is kept


def test_a_corpus_is_reported_on_all_over_and_once(monkeypatch, tmp_path):
    texts = ["some plain words " * 20] * 400 + ["жыў " * 80] * 100
    corpus, trained = corpus_of(texts), train_tokenizer(corpus_of(texts[:9]), vocab_size=256)
    report = report_of_corpus(trained, corpus, max_bytes=20_000, cache_dir=tmp_path)
    whole = tokenizer_report(trained, texts, max_bytes=10**9)
    assert report.unknown_rate == pytest.approx(whole.unknown_rate, rel=0.4)
    assert whole.unknown_rate > 0.1
    monkeypatch.setattr(Corpus, "parts", lambda self: pytest.fail("read again"))
    assert report_of_corpus(trained, corpus, max_bytes=20_000, cache_dir=tmp_path) == report


@pytest.mark.parametrize("lowercase", [True, False])
@pytest.mark.parametrize("accents", [True, False])
def test_accents_are_a_choice_apart_from_case(tmp_path, lowercase, accents):
    train_tokenizer(corpus_of(GERMAN), vocab_size=384, lowercase=lowercase, strip_accents=accents, out=tmp_path)
    trained = AutoTokenizer.from_pretrained(tmp_path)
    assert (trained("Mäuse")["input_ids"] == trained("Mause")["input_ids"]) is accents
    assert (trained("Mäuse")["input_ids"] == trained("mäuse")["input_ids"]) is lowercase


def joined(letters, joiner, number=200):
    """Documents of words in some of which a joiner stands between letters."""
    draw = random.Random(7)
    words = ["".join(draw.choices(letters, k=4)) + joiner + "".join(draw.choices(letters, k=3)) for _ in range(30)]
    return [" ".join(draw.choices(words, k=20)) for _ in range(number)]


@pytest.mark.parametrize(
    ("letters", "joiner"),
    [("\u0645\u06cc\u062e\u0648\u0627", "\u200c"), ("\u0d15\u0d28\u0d4d", "\u200d"), ("\u1780\u1781\u17d2", "\u200b")],
    ids=["Persian", "Malayalam", "Khmer"],
)
def test_joiners_of_no_width_are_kept_where_they_spell_words(tmp_path, letters, joiner):
    texts = joined(letters, joiner)
    train_tokenizer(corpus_of(texts), vocab_size=384, out=tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    trained = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_report(trained, texts).unknown_rate == 0
    assert trained(texts[0])["input_ids"] != trained(texts[0].replace(joiner, ""))["input_ids"]
    assert trained("a\x00\ufeff\u00adb")["input_ids"] == trained("ab")["input_ids"]
    pair = trained(texts[0], texts[1])
    assert set(pair["token_type_ids"]) == {0, 1}
    assert trained.convert_ids_to_tokens(range(5)) == SPECIAL_TOKENS
    assert trained.mask_token_id == 4
    # A few of them, as in emoji, are as BERT has it.
    plain = train_tokenizer(corpus_of([*ENGLISH * 3, "a\u200db"]), vocab_size=384)
    assert plain("a\u200db")["input_ids"] == plain("ab")["input_ids"]


def test_long_runs_without_spaces_are_no_unknown_words(tmp_path):
    """Nor are they others than before up to a hundred characters."""
    draw = random.Random(8)
    syllables = ["".join(chr(0x0E01 + draw.randrange(40)) for _ in range(3)) for _ in range(40)]
    texts = ["".join(draw.choices(syllables, k=number)) for number in (60, 120, 30) * 20]
    train_tokenizer(corpus_of(texts), vocab_size=512, out=tmp_path)
    trained = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_report(trained, texts).unknown_rate == 0
    assert trained.unk_token_id not in trained(texts[1])["input_ids"]
    assert "".join(token.removeprefix("##") for token in trained.tokenize(texts[1])) == texts[1]
    short = train_tokenizer(corpus_of([text[:90] for text in texts]), vocab_size=512)
    assert type(short).__name__ == "BertTokenizer"
    first, other = (one.backend_tokenizer.pre_tokenizer.pre_tokenize_str(texts[2]) for one in (trained, short))
    assert first == other


def test_alphabet_follows_the_text():
    """No character is unknown or has a form that cannot occur, of 1,500 Chinese ones, each once in a document."""
    signs = [chr(code) for code in range(0x4E00, 0x4E00 + 1500)]
    texts = ["".join(signs[place::3]) + "。 word words" for place in (0, 1, 2)] * 4
    trained = train_tokenizer(corpus_of(texts), vocab_size=2048)
    assert tokenizer_report(trained, texts).unknown_rate == 0
    vocab = trained.get_vocab()
    assert set(signs) <= set(vocab)
    assert not any(f"##{sign}" in vocab for sign in (*signs, "。"))
    assert "##d" in vocab
    small = train_tokenizer(corpus_of(texts), vocab_size=1024)
    assert 0.4 < sum(sign in small.get_vocab() for sign in signs) / 1500 < 0.7  # three quarters of the room


def test_room_that_is_left_goes_to_rarer_characters():
    """Beyond 99.95 % of the text, but the vocabulary is not full."""
    common, rare = "abcdef", [chr(code) for code in range(0xAC00, 0xAC00 + 1400)]
    texts = [" ".join(common)] * 9000 + [" ".join(rare[place::7]) for place in range(7)]
    vocab = train_tokenizer(corpus_of(texts), vocab_size=4096).get_vocab()
    assert set(rare) <= set(vocab)
    assert "[unused0]" in vocab
    assert "##\uac00" in vocab


def test_english_vocabularies_stay_as_they_were():
    """Chinese characters in English text have had continuation forms, and vocabularies are known by their tokens."""
    vocab = train_tokenizer(corpus_of([*ENGLISH, "the 漢 of the 漢"]), vocab_size=384).get_vocab()
    assert {"漢", "##漢"} <= set(vocab)


def test_pairs_of_texts_have_segments(trained):
    pair = trained("so", "it")
    assert pair["token_type_ids"] == [0] * (pair["input_ids"].index(3) + 1) + [1] * (
        len(pair["input_ids"]) - pair["input_ids"].index(3) - 1
    )
    assert set(pair["token_type_ids"]) == {0, 1}


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
    assert _alphabet(_counts([text]), limit=20) == [*letters[:19], "z"]


def test_mask_of_byte_level_bpe_takes_the_place_of_word_and_space(byte_tokenizer):
    tokens = byte_tokenizer.convert_ids_to_tokens(byte_tokenizer("e [MASK] e")["input_ids"])
    assert tokens == ["[CLS]", "Ġe", "[MASK]", "Ġe", "[SEP]"]


@pytest.mark.parametrize("num_bytes", [110_000, 400_000, None, 20_000])
def test_large_corpus_is_sampled_all_over(num_bytes):
    """Whether its size is known, estimated too high or low, or unknown, as of a stream."""
    texts = [f"{('first', 'second', 'third', 'last')[index // 250]} word " * 9 for index in range(1000)]
    corpus = Corpus("sampled", lambda: iter(texts), lambda: "f", num_bytes=num_bytes)
    vocab = train_tokenizer(corpus, vocab_size=256, max_bytes=11_000).get_vocab()
    assert {"first", "second", "third", "last"} <= set(vocab)


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
        "assert all(set(t('a', 'b')['token_type_ids']) == {0, 1} for t in loaded.values())\n"
        "print(json.dumps({kind: t(sys.argv[2], 'x')['input_ids'] for kind, t in loaded.items()}))\n"
    )
    said = run(program, str(tmp_path), text, folder=tmp_path).said
    assert json.loads(said.splitlines()[-1]) == expected
