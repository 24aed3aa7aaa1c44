"""The "english" normalisation: forms that an English speaker hears as the same are written the same.

After the description in Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022),
appendix C; the code and word lists here are our own. In order:

 1. NFKC, case folded, typographic apostrophes become '.
 2. Text in [brackets] and (parentheses) goes.
 3. A space before an apostrophe goes.
 4. Informal and contracted forms are written out (FORMS, ENDINGS): "gonna" is "going to", "won't" is "will
    not", "they've" is "they have". 's is "is" ("has" before been, got) after a pronoun, question word or
    there, here; elsewhere it is a possessive, which keeps the s: "john's" is "johns".
 5. Titles are written out: "mr" is "mister".
 6. Commas between digits go where they group thousands; "u.s.a." is "usa"; a full stop stays between digits.
 7. Diacritics go ("café" is "cafe"); so do symbols and punctuation, which become spaces, except the full stop
    between digits, a minus, a percent and a currency sign at a number.
 8. Fillers go: hmm, mm, mhm, mmm, uh, um, uhm, erm.
 9. Numbers and amounts become digits (`asr.text.numbers`): "twenty-first" is "21st", "$2.5 million" is
    "$2500000".
10. British spellings become American ones (SPELLINGS, and word families by pattern).

Departures from the paper: possessives (4), acronyms (6), digit strings stay separate words (9).
"""

from __future__ import annotations

import re
import unicodedata

from asr.text.numbers import replace_numbers

APOSTROPHES = str.maketrans(dict.fromkeys("’‘ʼ`´＇", "'") | {"−": "-"})

FILLERS = frozenset({"hmm", "mm", "mhm", "mmm", "uh", "um", "uhm", "erm"})

FORMS = {
    "ain't": "is not",
    "can't": "can not",
    "cannot": "can not",
    "won't": "will not",
    "shan't": "shall not",
    "let's": "let us",
    "y'all": "you all",
    "i'ma": "i am going to",
    "imma": "i am going to",
    "gonna": "going to",
    "wanna": "want to",
    "gotta": "got to",
    "gimme": "give me",
    "lemme": "let me",
    "kinda": "kind of",
    "sorta": "sort of",
    "woulda": "would have",
    "coulda": "could have",
    "shoulda": "should have",
    "ma'am": "madam",
    "o'clock": "oclock",
    "'cause": "because",
    "'em": "them",
    "'til": "until",
    "ok": "okay",
    # titles
    "mr": "mister",
    "mrs": "missus",
    "dr": "doctor",
    "prof": "professor",
    "capt": "captain",
    "gov": "governor",
    "sen": "senator",
    "rev": "reverend",
    "lt": "lieutenant",
    "sgt": "sergeant",
    "jr": "junior",
    "sr": "senior",
    "st": "saint",
    "esq": "esquire",
}

ENDINGS = {"n't": " not", "'re": " are", "'ll": " will", "'ve": " have", "'m": " am", "'d": " would"}

HOSTS_OF_IS = frozenset(
    {
        *("he", "she", "it", "that", "this", "there", "here", "what", "who", "where", "when", "why", "how"),
        *("everyone", "everybody", "everything", "someone", "somebody", "something", "nobody", "nothing"),
    }
)

_RE = (
    "centre",
    "theatre",
    "litre",
    "fibre",
    "calibre",
    "lustre",
    "sombre",
    "metre",
    "kilometre",
    "millimetre",
)
SPELLINGS = {
    **{british: british[:-2] + "er" for british in (*_RE, "centimetre", "spectre")},
    **{british: british[:-2] + "se" for british in ("defence", "offence", "licence", "pretence")},
    **{"grey": "gray", "cheque": "check", "programme": "program", "tyre": "tire", "kerb": "curb"},
    **{"plough": "plow", "draught": "draft", "mould": "mold", "moustache": "mustache", "cosy": "cozy"},
    **{"pyjama": "pajama", "aeroplane": "airplane", "aluminium": "aluminum", "jewellery": "jewelry"},
    **{"ageing": "aging", "judgement": "judgment", "acknowledgement": "acknowledgment"},
    **{"fulfil": "fulfill", "enrol": "enroll", "skilful": "skillful", "wilful": "willful"},
    **{"woollen": "woolen", "learnt": "learned", "burnt": "burned", "dreamt": "dreamed", "spelt": "spelled"},
    **{"catalogue": "catalog", "analogue": "analog", "sceptic": "skeptic", "sceptical": "skeptical"},
    **{"encyclopaedia": "encyclopedia", "mediaeval": "medieval", "manoeuvre": "maneuver"},
    **{"practise": "practice", "practised": "practiced", "practising": "practicing"},
    **{"sulphur": "sulfur", "speciality": "specialty", "specialities": "specialties"},
}

_FAMILIES: tuple[tuple[re.Pattern[str], str], ...] = (
    # colour, colours, coloured, colourful, favourite, neighbourhood, dishonourable ...
    (
        re.compile(
            r"((?:dis|un)?(?:arm|behavi|clam|col|demean|endeav|fav|ferv|flav|harb|hon|hum|lab|neighb|od|parl|"
            r"ranc|rig|rum|sav|savi|splend|tum|val|vap|vig))our(.*)"
        ),
        r"\1or\2",
    ),
    # organise, organised, organisation ...
    (
        re.compile(
            r"((?:dis|un|re|de)?(?:apolog|author|capital|categor|central|character|civil|colon|critic|custom|"
            r"digit|emphas|energ|equal|familiar|final|general|harmon|hospital|ideal|industrial|legal|local|"
            r"maxim|memor|minim|mobil|modern|national|neutral|normal|optim|organ|priorit|public|real|recogn|"
            r"special|stabil|standard|summar|symbol|sympath|util|visual))is(e[drs]?|ers|ing|ations?|able)"
        ),
        r"\1iz\2",
    ),
    (re.compile(r"(anal|paral|catal)ys(e|ed|ing)"), r"\1yz\2"),
    # travelled, cancelling, modeller ...
    (
        re.compile(
            r"(cancel|counsel|dial|equal|fuel|jewel|label|level|marvel|model|quarrel|signal|total|travel)"
            r"l(ed|ing|[eo]rs?)"
        ),
        r"\1\2",
    ),
    (re.compile(r"(an|leuk)aem(.*)"), r"\1em\2"),
    (re.compile(r"(h)aem(o.*)"), r"\1em\2"),
    (re.compile(r"(an|orthop|p)ae(sthe.*|d.*)"), r"\1e\2"),
)

_DIGRAPHS = str.maketrans({"œ": "oe", "æ": "ae", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "ı": "i"})


def normalize_english(text: str) -> str:
    """Apply the rules of this module; what has no English reading stays as it is."""
    text = unicodedata.normalize("NFKC", text.translate(APOSTROPHES)).casefold()
    text = re.sub(r"\[[^\[\]]*\]|\([^()]*\)", " ", text)
    text = re.sub(r"(?<=\w)\s+'(?=(?:s|t|re|ll|ve|m|d)\b)", "'", text)
    text = re.sub(r"\b(?:[a-z]\.){2,}", lambda match: match[0].replace(".", "") + " ", text)
    text = _write_out(_strip_symbols(text))
    tokens = [token for token in text.split() if token not in FILLERS]
    return " ".join(american(token) for token in replace_numbers(tokens))


def american(word: str) -> str:
    """Return the American spelling of a British one, any other word as it is."""
    for ending in ("", "s"):
        base = word.removesuffix(ending) if ending else word
        if word.endswith(ending) and base in SPELLINGS:
            return SPELLINGS[base] + ending
    for pattern, replacement in _FAMILIES:
        if match := pattern.fullmatch(word):
            return match.expand(replacement)
    return word


def _strip_symbols(text: str) -> str:
    """Drop diacritics and symbols; keep apostrophes for contractions and the signs that belong to numbers."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    text = re.sub(r"(?<![\w.])\.(?=\d)", "0.", text)
    text = re.sub(r"([$£€¥¢])\s+(?=\d)", r"\1", text)
    text = re.sub(r"(?<=\d)\s+%", "%", text)
    text = unicodedata.normalize("NFD", text.translate(_DIGRAPHS))
    text = "".join(character for character in text if unicodedata.category(character)[0] != "M")
    kept = r"'|(?<=\d)\.(?=\d)|(?<![\w%.])-(?=[$£€¥¢]?\d)|[$£€¥¢](?=\d)|(?<=\d)%"
    return re.sub(rf"({kept})|[^\w\s]|_", lambda match: match[1] or " ", text)


def _write_out(text: str) -> str:
    """Expand contractions and titles, word by word, then drop the remaining apostrophes."""
    words = text.split()
    result = []
    for index, word in enumerate(words):
        following = words[index + 1] if index + 1 < len(words) else ""
        result.append(_expand(word, following).replace("'", ""))
    return " ".join(result)


def _expand(word: str, following: str) -> str:
    bare = word.strip("'")
    if form := FORMS.get(word, FORMS.get(bare)):
        return form
    host, _, ending = bare.rpartition("'")
    perfect = following in {"been", "got"}
    if ending == "s" and host in HOSTS_OF_IS:
        return f"{host} has" if perfect else f"{host} is"
    if ending == "d" and following == "been":
        return f"{host} had"
    for suffix, expansion in ENDINGS.items():
        if bare.endswith(suffix) and len(bare) > len(suffix):  # again, for "shouldn't've"
            return _expand(bare.removesuffix(suffix), expansion) + expansion
    return bare
