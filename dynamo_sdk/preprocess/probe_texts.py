"""Texts at which tokenizers that claim to be equal tend to differ, written so that all is visible."""

PROBE_TEXTS = (
    # contractions in both cases
    "What is a KV block? A fixed run of tokens, isn't it; WE'LL see they'Ve DON'T 'tis o'clock."
    " S'\u017f'to \xe9'\u017f'st \u017f'\u017f'ss K'\u017f'tokens \u4e2d'\u017f'ts",
    # runs of spaces and lines
    "  two  spaces   three\tand\t\ttabs \r\n\r\n\n lines \n \n  end  ",
    # spaces that are none, and the other way round
    "\xa0no\u2003break\u3000spaces\u200bzero\u2060width\ufeff\u180e \u180e\u2028line\u2029paragraph\x85"
    "next\x1c\x1f",
    # control characters
    "\x00\x01control\x07\x1b[0m\x7f",
    # digits of many scripts
    "0 1 12 123 1234 12345678901234567890 3.14159 1e-9 0xFF \u0661\u0662\u0663 \u096a\u096b\u096c \xb2 "
    "\xbd \u216b \u4e00\u4e8c\u4e09 \U0001d7d8\U0001d7d9",
    # composed, decomposed and oddly cased letters
    "na\xefve caf\xe9 \xe9t\xe9 e\u0301 A\u030a \u1e9b\u0323 \ufb01 \u017f \xdf \u0130i \u0131I \u01c5 "
    "\u1e9e \u03a3\u03c2",
    # Chinese, Japanese, Korean
    "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\u3002\uff8a\uff9d"
    "\uff76\uff78 \ud55c\uad6d\uc5b4 \uac01 \uac01 \U00020000\U0002a6d6 \u7e41\u9ad4\u5b57",
    # Cyrillic, Hebrew, Arabic, Devanagari, Thai, Georgian, Mongolian
    "\u043f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440 \u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd"
    " \u05e2\u05d5\u05dc\u05dd \u0627\u0644\u0633\u064e\u0651\u0644\u064e\u0627\u0645\u064f \u0639"
    "\u0644\u064a\u0643\u0645 \u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e"
    " \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01 \u10e5\u10d0\u10e0\u10d7"
    "\u10e3\u10da\u10d8 \u182e\u1823\u1829\u182d\u1823\u182f\u180e\u1820",
    # emoji, joined and not; the ends of Unicode
    "\U0001f642\U0001f643\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466\U0001f3f3\ufe0f"
    "\u200d\U0001f308\U0001f1e9\U0001f1ea\U0001f44d\U0001f3fd text\U0001f642text \u2603\ufe0f "
    "\U000e0067\U0010ffff\ue000\uffff\ufffd",
    # code
    "def f(x: int) -> str:\n    return f'{x!r}'  # why\n\n\tif (a&&b)||!c{d[0]+=1;}\r\n</div>\n```py\n```",
    # addresses and runs of signs
    "https://example.org/a/b?c=d&e=%20#f //// \\\\ ... --- *** ___ === <<<>>> $$$ @@@ ''' \"\"\" '''s",
    # mixed case and mixed scripts
    "camelCaseWord HTTPServer snake_case_word SHOUTING \xc0\xc9\xce mIxEd na\xefveT\xc9 Latin\u6f22"
    "\u5b57\u043a\u0438\u0440\u0438\u043b\u043b\u0438\u0446\u0430\u0639\u0631\u0628\u064a123abc",
    # very long words and runs
    "a" * 700
    + " "
    + "ab" * 400
    + " " * 300
    + "\n" * 200
    + "\xe9" * 300
    + "\u597d" * 200
    + "!" * 300
    + "7" * 200,
)
