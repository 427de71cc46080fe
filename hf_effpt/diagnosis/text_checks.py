"""Checks of a text, by its [`TextFacts`], and of a tokenizer on it, by its [`TokenizerReport`]."""

import shlex

from hf_effpt.data.tokenizer_report import TokenizerReport

from .finding import Finding
from .text_facts import TextFacts

# Shares from which on a fault is a warning, and an error.
DOUBLES, GARBLED, UNKNOWN, LEAKED = (0.01, 0.2), (0.0005, 0.01), (0.005, 0.05), (0.001, 0.01)
SHORT_WORDS = 8  # in the middle document
LONGEST = 0.5  # share of the text in one document
SECOND_SCRIPT = 0.05
LISTED = 5  # blank files that are named
BYTES_A_TOKEN = 2.2  # a wordpiece of an own vocabulary of 8,192 has 3.9 in English


def doubles(text: TextFacts) -> Finding | None:
    """Documents that are there twice."""
    share = text.doubles / text.documents
    if share < DOUBLES[0]:
        return None
    return Finding(
        "doubles",
        "error" if share >= DOUBLES[1] else "warning",
        f"{text.doubles:,} of {text.documents:,} documents ({share:.1%}) equal an earlier one, up to case and spaces.",
        "Each costs a share of the budget and teaches nothing new; held out and trained on, it flatters the loss.",
        text.training_with("--data.select '{deduplicate: exact}'"),
    )


def leakage(text: TextFacts) -> Finding | None:
    """Validation documents that are in the training text."""
    share = text.leaked / max(1, text.held_out)
    if share < LEAKED[0]:
        return None
    least = "" if text.whole else "At least "
    return Finding(
        "leakage",
        "error" if share >= LEAKED[1] else "warning",
        f"{least}{text.leaked:,} of {text.held_out:,} validation documents ({share:.1%}) are in the training text.",
        "The held-out loss is then lower than on new text, so that it favours models that learn by heart.",
        text.training_with(
            f"--data.validation {shlex.quote(text.validation)}", "--data.select '{deduplicate: exact}'"
        ),
    )


def garbled(text: TextFacts) -> Finding | None:
    """Characters of text decoded wrongly."""
    if text.garbled < GARBLED[0]:
        return None
    return Finding(
        "garbled",
        "error" if text.garbled >= GARBLED[1] else "warning",
        f"{text.garbled:.2%} of the characters are replacement or control characters, or UTF-8 read as Latin-1.",
        "The model and its vocabulary learn the damage along with the text.",
        "decode the source again with its own encoding; for UTF-8 read as Latin-1: "
        "text.encode('cp1252').decode('utf-8')",
    )


def blank(text: TextFacts) -> Finding | None:
    """Files without text beside others that have some."""
    if not text.blank:
        return None
    more = f" and {len(text.blank) - LISTED:,} more" if len(text.blank) > LISTED else ""
    return Finding(
        "blank files",
        "warning",
        f"There is no text in {', '.join(text.blank[:LISTED])}{more}.",
        "A run reads over them; text that should be there may have been lost where they were written.",
        "write them again, or remove them",
    )


def lengths(text: TextFacts) -> Finding | None:
    """Documents that are cut too small, or one that is nearly everything."""
    middle, longest = sorted(text.words_N)[text.documents // 2], text.bytes_N.max() / text.bytes_N.sum()
    if middle < SHORT_WORDS:
        return Finding(
            "lengths",
            "warning",
            f"Half of the documents have at most {middle:,} words.",
            "Rows then hold unrelated snippets, and there is little context to predict a masked word from.",
            text.training_with("--data.documents blank_lines")
            if text.cut == "lines"
            else "join what belongs together into one document before training",
        )
    if longest <= LONGEST or not text.whole:
        return None
    return Finding(
        "lengths",
        "warning",
        f"One of {text.documents:,} documents holds {longest:.0%} of the text.",
        "Documents are held out whole, so that the validation text is either tiny or most of the text.",
        text.training_with(f"--data.documents {'lines' if text.cut == 'blank_lines' else 'blank_lines'}"),
    )


def scripts(text: TextFacts) -> Finding | None:
    """A second script beside the main one."""
    named = [(name, share) for name, share in text.scripts.items() if share >= SECOND_SCRIPT]
    if len(named) < 2:
        return None
    return Finding(
        "scripts",
        "warning",
        f"The letters are of several scripts: {', '.join(f'{name.lower()} {share:.0%}' for name, share in named)}.",
        "A vocabulary is shared by them, so that each has fewer and shorter words in it.",
        text.training_with("--data.vocab_size 32768", "--data.strip_accents false"),
    )


def unknown(tokenizer: TokenizerReport) -> Finding | None:
    """Characters that the tokenizer does not know."""
    if tokenizer.unknown_rate < UNKNOWN[0]:
        return None
    return Finding(
        "unknown",
        "error" if tokenizer.unknown_rate >= UNKNOWN[1] else "warning",
        f"{tokenizer.unknown_rate:.1%} of the characters are unknown to the tokenizer, or dropped by it.",
        "What is unknown cannot be learned, and the loss looks lower, since [UNK] is easy to predict.",
        "train one on this text: effpt tokenizer CORPUS --vocab_size 8192 --out tok/ (--no-strip_accents keeps "
        "accents), then --data.tokenizer tok/",
    )


def fragments(tokenizer: TokenizerReport) -> Finding | None:
    """Words that fall into many small tokens."""
    if tokenizer.bytes_per_token >= BYTES_A_TOKEN or not tokenizer.words:
        return None
    return Finding(
        "fragments",
        "warning",
        f"A token has {tokenizer.bytes_per_token:.1f} bytes of text, a word {tokenizer.fertility:.1f} tokens.",
        "Rows hold little text, a step costs more for it, and masked pieces are guessed from their own word.",
        "train a tokenizer on this text: effpt tokenizer CORPUS --vocab_size 8192 --out tok/, then "
        "--data.tokenizer tok/; or a larger --data.vocab_size",
    )
