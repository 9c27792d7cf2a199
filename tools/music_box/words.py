"""The words that the music box hears, in English and Japanese, and the tokenizer that hears nothing else.

Many spellings share one meaning. The model is trained on meanings; in the checkpoint each spelling is a token of its
own whose embedding is a copy of its meaning's. The tokenizer's configuration says what it knows, and which words say
nothing, so that a worker can name the words of a prompt that are not heard.
"""

from __future__ import annotations

import re

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tools.music_box.barrel import TEMPI, Tempo

END = "<|endoftext|>"
UNHEARD = "<unheard>"

# Said by the pipeline's own templates (diffusers' TASK_INSTRUCTIONS).
TASKS = {
    "text2music": ("fill the audio semantic mask",),
    "repaint": ("repaint the mask area",),
    "cover": ("generate audio semantic tokens",),
    "extract": ("extract the",),
    "lego": ("track based on the audio context",),
    "complete": ("complete the input track",),
}
TRACKS = {
    "melody": ("melody", "vocals", "vocal", "backing_vocals", "woodwinds", "brass", "メロディー", "メロディ", "旋律"),
    "accompaniment": ("accompaniment", "bass", "keyboard", "chords", "伴奏", "ベース", "和音"),
    "drums": ("drums", "drum", "percussion", "fx", "beat", "beats", "ドラム", "太鼓", "打楽器"),
}
INSTRUMENTS = {
    "bell": (
        *("bell", "bells", "music box", "celesta", "glockenspiel", "chime", "chimes", "vibraphone", "synth"),
        *("オルゴール", "ベル", "鈴", "チェレスタ", "鉄琴", "シンセ"),
    ),
    "pluck": (
        *("pluck", "plucked", "harp", "guitar", "kalimba", "piano", "koto", "pizzicato", "strings", "ukulele"),
        *("ハープ", "ギター", "カリンバ", "ピアノ", "琴", "弦"),
    ),
    "pipe": (
        *("pipe", "pipes", "organ", "barrel organ", "flute", "ocarina", "whistle", "recorder", "serinette"),
        *("オルガン", "フルート", "オカリナ", "笛", "口笛", "リコーダー", "パイプ"),
    ),
}
MOODS = {
    "happy": (
        *("happy", "cheerful", "joyful", "bright", "playful", "merry", "fun", "upbeat", "pop", "rock", "folk"),
        *("楽しい", "明るい", "陽気", "元気", "嬉しい", "うれしい", "ポップ"),
    ),
    "calm": (
        *(
            "calm",
            "gentle",
            "peaceful",
            "relaxing",
            "soft",
            "smooth",
            "quiet",
            "slow",
            "lullaby",
            "sleepy",
            "ballad",
            "ambient",
        ),
        *(
            "chill",
            "mellow",
            "lofi",
            "静か",
            "穏やか",
            "やさしい",
            "優しい",
            "落ち着いた",
            "子守唄",
            "子守歌",
            "ゆったり",
        ),
    ),
    "sad": (
        *("sad", "melancholy", "melancholic", "sorrowful", "lonely", "dark", "tearful", "wistful", "nostalgic"),
        *("悲しい", "哀しい", "切ない", "寂しい", "さびしい", "暗い", "懐かしい"),
    ),
    "dance": (
        *("dance", "dancing", "energetic", "lively", "exciting", "party", "fast", "house", "techno", "march", "waltz"),
        *("ダンス", "踊る", "踊り", "激しい", "にぎやか", "速い", "パーティー"),
    ),
}
_TONICS = {
    0: ("c", "b#"),
    1: ("c#", "db", "c♯", "d♭", "c sharp", "d flat"),
    2: ("d",),
    3: ("d#", "eb", "d♯", "e♭", "d sharp", "e flat"),
    4: ("e", "fb"),
    5: ("f", "e#"),
    6: ("f#", "gb", "f♯", "g♭", "f sharp", "g flat"),
    7: ("g",),
    8: ("g#", "ab", "g♯", "a♭", "g sharp", "a flat"),
    9: ("a",),
    10: ("a#", "bb", "a♯", "b♭", "a sharp", "b flat"),
    11: ("b", "cb"),
}
# Pitch class of each Japanese tonic: the naturals, raised (嬰) and lowered (変).
_JAPANESE_TONICS = {
    sign + name: (natural + shift) % 12
    for natural, name in zip((0, 2, 4, 5, 7, 9, 11), "ハニホヘトイロ", strict=True)
    for sign, shift in (("", 0), ("嬰", 1), ("変", -1))
}
_BPM = range(30, 301)  # what a spec may ask
UNSAID_TEMPO = Tempo.nearest(104)
UNSAID_TONIC = 0
# Words that lean to a key or a tempo where none is said, by the sign that is heard behind each of them.
LEANINGS = {
    "☾": ("key 9 minor", MOODS["sad"]),
    "↓": (
        f"tempo {Tempo.nearest(72).tooth} slow",
        ("slow", "lullaby", "sleepy", "ballad", "子守唄", "子守歌", "ゆったり"),
    ),
    "↑": (f"tempo {Tempo.nearest(138).tooth} fast", ("fast", "速い", "激しい")),
}
# Words of a prompt that say nothing, and of which no warning is due.
PASSED_OVER = (
    *("a", "an", "the", "of", "on", "in", "at", "with", "and", "or", "for", "to", "by", "some", "my", "very", "like"),
    *(
        "tune",
        "tunes",
        "song",
        "songs",
        "music",
        "musical",
        "piece",
        "track",
        "sound",
        "sounds",
        "solo",
        "instrumental",
    ),
    *("play", "played", "playing", "key", "tempo", "feel", "feeling", "mood", "style", "background"),
    *("の", "な", "で", "と", "を", "に", "曲", "音楽", "楽曲", "演奏", "音色", "音", "風", "感じ"),
)
KNOWS = (
    "moods (happy, calm, sad, dance), instruments (music box, harp or piano, flute or organ), drums, slow and fast, "
    "a bpm and a key, in English or Japanese"
)


def key(tonic: int, *, minor: bool) -> str:
    """The meaning of a key; the tonic is a pitch class, C is 0."""
    return f"key {tonic} {'minor' if minor else 'major'}"


def tempo(at: Tempo) -> str:
    """The meaning of a tempo."""
    return f"tempo {at.tooth} {'slow' if at.slow else 'fast'}"


def _spellings() -> dict[str, str]:
    """Each spelling, in lower case, and its meaning."""
    heard = {
        word: meaning for kind in (TASKS, TRACKS, INSTRUMENTS, MOODS) for meaning in kind for word in kind[meaning]
    }
    for tonic, names in _TONICS.items():
        for minor, modes in (
            (False, ("major", "maj", "メジャー", "長調")),
            (True, ("minor", "min", "マイナー", "短調")),
        ):
            spelled = [f"{name}{space}{mode}" for name in names for mode in modes for space in (" ", "")]
            japanese = "短調" if minor else "長調"
            spelled += [name + japanese for name, pitch_class in _JAPANESE_TONICS.items() if pitch_class == tonic]
            spelled += [f"keyscale: {one}" for one in spelled]
            heard.update(dict.fromkeys(spelled, key(tonic, minor=minor)))
    for bpm in _BPM:
        meaning = tempo(Tempo.nearest(bpm))
        heard.update(dict.fromkeys((f"bpm: {bpm}", f"bpm {bpm}", f"{bpm} bpm", f"{bpm}bpm", f"テンポ{bpm}"), meaning))
    heard.update((token, meaning) for token, (meaning, _) in LEANINGS.items())
    # A model that is given neither must play something.
    return heard | {"bpm: n/a": tempo(UNSAID_TEMPO), "keyscale: n/a": key(UNSAID_TONIC, minor=False)}


SPELLINGS = _spellings()
_TEMPI = [Tempo(tooth, slow) for slow in (False, True) for tooth in range(12 if slow else 0, TEMPI)]
MEANINGS = (
    END,
    *TASKS,
    *TRACKS,
    *INSTRUMENTS,
    *MOODS,
    *map(tempo, _TEMPI),
    *dict.fromkeys(key(tonic, minor=minor) for tonic in range(12) for minor in (False, True)),
)
PLACE = {meaning: place for place, meaning in enumerate(MEANINGS)}


def meaning_of_tokens() -> list[int]:
    """For each token of `tokenizer`, the place of its meaning in MEANINGS."""
    return [PLACE[END], PLACE[END], *(PLACE[meaning] for meaning in SPELLINGS.values())]


def faintness_of_tokens() -> list[float]:
    """For each token of `tokenizer`, how faintly it is said: what is stated over what a word leans to, and that over
    what is not said.
    """
    return [0.0, 0.0, *(0.22 if word.endswith("n/a") else 0.12 if word in LEANINGS else 0.0 for word in SPELLINGS)]


# What must not follow a key or a tempo of the caption: metadata that state one.
_STATED = {"tempo": r"(?![\s\S]*bpm: \d)", "key": r"(?![\s\S]*keyscale: [a-g])"}


def _alternatives(spellings: list[str]) -> list[str]:
    """What finds the spellings, longest first: words in Latin letters whole, others anywhere."""
    longest = sorted(spellings, key=len, reverse=True)
    latin = "|".join(re.escape(word).replace("\\ ", " ") for word in longest if word.isascii())
    return [
        rf"(?<![a-z0-9#])(?:{latin})(?![a-z0-9])",
        f"(?:{'|'.join(word for word in longest if not word.isascii())})",
    ]


def tokenizer() -> PreTrainedTokenizerFast:
    """Hears the spellings, longest first, in any case and width; everything else in a text is not there, nor is a key
    or a tempo of the caption that metadata behind it state.
    """
    vocabulary = {word: token for token, word in enumerate((END, UNHEARD, *SPELLINGS))}
    stated = {word for word in SPELLINGS if word.startswith(("bpm: ", "keyscale: "))}
    kinds = {
        kind: [word for word, meaning in SPELLINGS.items() if meaning.startswith(kind) and word not in stated]
        for kind in _STATED
    }
    plain = [word for word, meaning in SPELLINGS.items() if word in stated or not meaning.startswith(tuple(_STATED))]
    alternatives = [
        *_alternatives(plain),
        *(one + _STATED[kind] for kind in kinds for one in _alternatives(kinds[kind])),
    ]
    pattern = "|".join(alternatives)
    heard = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=UNHEARD))
    heard.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), *_leaning()])
    heard.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers types only its models
        tokenizer_object=heard,
        pad_token=END,
        eos_token=END,
        unk_token=UNHEARD,
        padding_side="right",
        model_max_length=4096,
        closed_vocabulary={"knows": KNOWS, "passed_over": PASSED_OVER},
    )


def _leaning() -> list[normalizers.Replace]:
    """Put its token behind each word that leans."""
    made = []
    for token, (_, leaning) in LEANINGS.items():
        latin = "|".join(rf"[^a-z0-9#]{word}|\A{word}" for word in leaning if word.isascii())
        other = "|".join(word for word in leaning if not word.isascii())
        # Looked at from behind, so that the word keeps its place in the text.
        made.append(normalizers.Replace(Regex(f"(?<={latin})(?![a-z0-9])|(?<={other})"), token))
    return made
