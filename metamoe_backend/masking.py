"""Template meta-questions: a question with its particulars masked, by rules alone.

    "What day of the week was October 28, 2022?"     -> "What day of the week was [date]?"
    "Sort these words: pear, apple, fig"             -> "Sort these words: [list]"
    "小明有12个苹果，吃了3个，还剩几个？"                  -> "[name]有[number]个苹果，吃了[number]个，还剩几个？"

Numbers, dates, quoted strings, names, code, long literals and boards become one word in brackets each, lists of them
one `[list]`, formulas one `[expression]`; lines that have become equal are told once. The asking words stay.

The rules are applied again and again until nothing changes, so masking a masked text changes nothing.

What rules cannot know: a name that opens a sentence is masked only where the text gives it away (it returns later, or
other persons are about); a capitalised term that is neither listed in KEPT nor spelt in lower case elsewhere counts as
a name; common nouns are never masked.
"""

import re
from collections.abc import Callable

VERSION = "2"
"""Raise it with every change of the rules: meta-questions are built anew then."""

LONGEST = 8000
"""Characters. Of a longer text the middle is masked, which bounds the time a hostile text can take."""

MOST_ROUNDS = 40
"""Ordinary questions need two to four, an expression one more for each level of brackets."""

MARK = r"\[(?:number|text|name|variable|code|list|expression|date|time|grid|passage)\]"
_NO_LETTER_BEFORE = r"(?<![A-Za-z0-9_])"
_NO_LETTER_AFTER = r"(?![A-Za-z0-9_])"

Rule = Callable[[str], str]


def mask_question(text: str) -> str:
    """The template meta-question of `text`. Never raises; masking twice gives the same as masking once.

    A text so deeply nested that the rules do not come to rest in MOST_ROUNDS is no question: it becomes `[text]`.
    """
    for _ in range(MOST_ROUNDS):
        masked = text
        for rule in _RULES:
            masked = rule(masked)
        if masked == text:
            return masked
        text = masked
    return "[text]"


def _replace(pattern: str, replacement: str | Callable[[re.Match[str]], str], flags: int = 0) -> Rule:
    compiled = re.compile(pattern, flags)
    return lambda text: compiled.sub(replacement, text)


# ---- white space, code, quotations, passages --------------------------------------------------------------------


def _shorten(text: str) -> str:
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2 - 10
    return f"{text[:half]} [text] {text[-half:]}"


def _tidy(text: str) -> str:
    lines = re.split(r"\r\n|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]", text)
    return re.sub(r"\n{2,}", "\n\n", "\n".join(" ".join(line.split()) for line in lines)).strip()


_PASSAGE = _replace(
    r"^((?:Passage|Context|Article|Story|Paragraph|Background|Text|文章|短文|材料|阅读材料|背景)\s*[:：]\s*)(?!\[passage\])"
    r".{160,}?(?=\n\n|\n\s*(?:Question|Q|问题|问)\s*[:：]|\s(?:Question|Q)\s*:)",
    r"\1[passage]",
    re.DOTALL | re.MULTILINE,
)
_PASSAGE_BEFORE_QUESTION = _replace(
    r"\A(?!(?:Question|Q|问题|问)\s*[:：])[^\n]{160,}(?=\n+(?:Question|Q|问题|问)\s*[:：][^\n]+\Z)", "[passage]"
)
_FENCED_CODE = _replace(r"```.*?(?:```|\Z)", "[code]", re.DOTALL)
_CODE_BLOCK = _replace(
    r"(?:^[ \t]*(?:def|class|for|while)\b[^\n]*:[ \t]*\n(?:[ \t]+[^\n]*(?:\n|\Z))+)+", "[code]\n", re.MULTILINE
)
_INLINE_CODE = _replace(r"`[^`\n]{1,200}`", "[code]")
_LATEX = _replace(
    r"\$\$[^$]{1,400}\$\$|\\\(.{1,400}?\\\)|\\\[.{1,400}?\\\]|\$[^$\n]{0,200}?[\\^_=][^$\n]{0,200}?\$", "[expression]"
)
_QUOTED = _replace(
    r"\"+[^\"\n]{1,600}\"+|“[^”]{1,600}”|‘[^’\n]{1,200}’(?![A-Za-z])|«[^»\n]{1,400}»|「[^」]{1,400}」|『[^』]{1,400}』"
    r"|《[^》\n]{1,100}》|〈[^〉\n]{1,100}〉|(?<!\w)'(?!\s)[^'\n]{1,200}(?<!\s)'(?!\w)|''[^'\n]{1,200}''",
    "[text]",
)
_ADDRESS = _replace(r"\b(?:https?://|www\.)[^\s<>\"'）)]+|\b[\w.+-]+@[\w-]+\.[\w.-]+\w", "[text]")
_BULLET = _replace(
    r"^[ \t]*(?:[*•·–]|\d{1,2}[.)、]|[（(]\d{1,2}[)）])(?=[^\S\n]+\S|[^\s\d.A-Za-z)])[^\S\n]*", "- ", re.MULTILINE
)

# ---- numbers, dates, times --------------------------------------------------------------------------------------

_MONTH = (
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December"
    r"|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept|Sep|Oct|Nov|Dec)\b\.?"
)
_DATE = _replace(
    rf"\b{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?\b(?:\s*,?\s+\d{{4}}\b)?|\b\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}(?:,?\s+\d{{4}}\b)?"
    rf"|\b{_MONTH},?\s+\d{{4}}\b|{_NO_LETTER_BEFORE}\d{{4}}([-/.])\d{{1,2}}\1\d{{1,2}}{_NO_LETTER_AFTER}"
    rf"|{_NO_LETTER_BEFORE}\d{{1,2}}/\d{{1,2}}/\d{{2,4}}{_NO_LETTER_AFTER}"
    r"|[\d〇零一二三四五六七八九]{2,4}年(?:[\d一二三四五六七八九十]{1,2}月(?:[\d一二三四五六七八九十]{1,3}[日号])?)?"
    r"|[\d一二三四五六七八九十]{1,2}月[\d一二三四五六七八九十]{1,3}[日号]"
    r"|(?:星期|周|礼拜)[一二三四五六日天](?!期)"
    r"|\b(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)days?\b|\b(?:January|February|April|June|July|August|September|October|"
    r"November|December)\b",
    "[date]",
)
_TIME = _replace(
    rf"{_NO_LETTER_BEFORE}\d{{1,2}}[:：]\d{{2}}(?:[:：]\d{{2}})?(?:\.\d+)?(?:\s?(?:[ap]m|[AP]M|[ap]\.m\.))?(?:\s?(?:UTC|GMT)?[+-]\d{{2}}:?\d{{2}}|\s(?:UTC|GMT))?{_NO_LETTER_AFTER}"
    rf"|{_NO_LETTER_BEFORE}\d{{1,2}}\s?(?:[ap]m|[AP]M|[ap]\.m\.){_NO_LETTER_AFTER}",
    "[time]",
)
_DATE_AND_TIME = _replace(r"\[date\](?:,? (?:at )?\[(?:date|time)\])+", "[date]")
_DIGITS = r"(?:0[xX][0-9A-Fa-f]+|\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?"
_SIGN = r"(?:(?<![\w\])）.])(?<![\d\])] )[-−])?"
_NUMBER = _replace(
    rf"{_SIGN}(?:US)?[$€£¥￥]?{_NO_LETTER_BEFORE}(?<!\d\.)(?:\d+d\d+|{_DIGITS})(?:\s?[xX×]\s?\d+(?![\w.]))*"
    r"(?:st\b|nd\b|rd\b|th\b|[%％°‰])?(?![\d_])",
    "[number]",
)
_WORD_FROM_TWO = (
    r"(?:zero|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen|sixteen|seventeen|eighteen"
    r"|nineteen|twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|billion)"
)
_NUMBER_WORDS = _replace(
    rf"\b(?:(?:one|a)\s+(?=hundred|thousand|million|billion))?{_WORD_FROM_TWO}(?:[\s-]+(?:and\s+)?(?:{_WORD_FROM_TWO}|one))*\b",
    "[number]",
    re.IGNORECASE,
)
_NUMERAL = "零〇一二两三四五六七八九十百千万亿"
_CLASSIFIER = (
    "个只条张本元块岁年天日月米克吨升人位名件双辆棵朵头匹把支枝颗粒台座层间套次遍倍步页字瓶杯碗盒箱包袋斤里组排行列种门科道题"
    "队班份段根片户家节场所艘架封首幅盏滴串筐捆周分秒角号"
)
_CHINESE_NUMBER = _replace(
    rf"[{_NUMERAL}]+分之[{_NUMERAL}]+(?:点[{_NUMERAL}]+)?"
    rf"|[{_NUMERAL}]+点[零〇一二三四五六七八九]+"
    rf"|(?=[{_NUMERAL}]*[十百千万亿])(?=[{_NUMERAL}]*[一二两三四五六七八九])[{_NUMERAL}]{{2,}}(?!分之)"
    r"|[〇零一二三四五六七八九]{3,}"
    rf"|十(?!分(?!钟|之)|足|全)(?=(?:多|几)?(?:[{_CLASSIFIER}]|公里|公斤|厘米|小时|平方|立方|千克))"
    rf"|(?<![{_NUMERAL}第])[二两三四五六七八九](?!角[形函]|边形|次方|元一|维)(?=(?:多|几)?(?:[{_CLASSIFIER}]|公里|公斤|厘米|小时|平方|立方|千克))"
    rf"|(?<=第)[{_NUMERAL}]+",
    "[number]",
)

# ---- names ------------------------------------------------------------------------------------------------------


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


KEPT = _words("""
    True False Yes No None Null Question Answer Answers Passage Context Option Options Choice Choices Example
    Examples Input Inputs Output Outputs Statement Statements Step Steps Sentence Rule Rules Note Notes Hint Return
    Format Final Find Determine Calculate Compute Solve Give Given Provide Reply Respond Write Which What Who Whom
    Whose When Where Why How Is Are Was Were Does Do Did Can Could Will Would Should If The This That These Those
    There Then And Or Not But Greatest Common Divisor Factor Least Lowest Highest Multiple Prime Roman Arabic
    Boolean Caesar Sudoku Futoshiki Hanoi Fibonacci Pythagorean Euclidean Python Java Celsius Fahrenheit Unicode
    Manhattan Moore Gaussian Cartesian Latin Hamming Levenshtein Mini Please Markov Bayes Internet English Chinese
""")
"""Capitalised words that ask, instruct or name a method: never masked."""
_OPENERS = KEPT | _words("""
    It He She They We You I His Her Their Our My Your Its Each Every All Some Any Both Either Neither Most Many Few
    Several Another Other Someone Everyone Nobody Everybody Today Yesterday Tomorrow Now Here Let Suppose Assume
    Consider Imagine While After Before Because Since So As At In On By For From With Without During An A One To Of
    Only Also Initially Next Finally Later Meanwhile However
""")
_CAPITALISED = re.compile(r"(?<![\w\[])[A-ZÀ-ÖØ-Þ][\w’'-]*[a-zß-öø-ÿ][\w’'-]*")
_TITLED = _replace(r"\b(?:Mr|Mrs|Ms|Dr|Prof|Professor|Mister|Miss)\.?\s+(?:[A-Z][\w’'-]+|\[name\])", "[name]")
_ACRONYM_PHRASE = re.compile(r"\b((?:[A-Z][a-z]+[ -]){1,5}[A-Z][a-z]+) \(([A-Z]{2,6})\)")
_PERSONAL = _words("""
    is was has had and or did does said told bought sold ate gave got went ran read wrote made took spent found
    drove saw left kept put met won lost paid began brought built drank says tells buys sells eats gives gets goes
    runs walks reads writes works makes takes plays likes loves needs wants lives earns spends saves collects picks
    bakes drinks drives finds starts plans decides uses owns pays puts sees thinks asks receives invites sleeps
    weighs plants orders brings adds keeps leaves will would can could
""")
"""What persons do: such a word behind the first word of a sentence makes that word a name, where persons are about."""
_PERSONAL_VERB = re.compile(rf"(?: \[name\])*(?:['’]s\s+[a-z]|\s+(?:{'|'.join(sorted(_PERSONAL))}|[a-z]{{2,}}ed)\b)")
_SOMEONE = re.compile(r"\[name\]|\b(?:he|she|him|his|her|hers)\b", re.IGNORECASE)
_SENTENCE_END = ".!?:;…。！？：；|\n"


def _mask_names(text: str) -> str:
    """Capitalised words inside a sentence; at its start only where the text tells that the word is a name."""
    kept_spans = [found.span(1) for found in _ACRONYM_PHRASE.finditer(text) if _initials(found[1]) == found[2]]
    found = [match for match in _CAPITALISED.finditer(text) if not any(a <= match.start() < b for a, b in kept_spans)]
    inside = {_bare(match[0]) for match in found if not _starts_sentence(text, match.start())}
    common = set(re.findall(r"(?<!\w)[a-z][\w-]*", text))
    names = {word for word in inside if len(word) > 1 and word not in KEPT and word.lower() not in common}
    someone = bool(names) or bool(_SOMEONE.search(text))

    def mask(match: re.Match[str]) -> str:
        word = _bare(match[0])
        is_name = word in names
        if not is_name and someone and _starts_sentence(text, match.start()):
            unlike_opener = word not in _OPENERS and word.lower() not in common
            is_name = unlike_opener and bool(_PERSONAL_VERB.match(text, match.start() + len(word)))
        if not is_name or any(a <= match.start() < b for a, b in kept_spans):
            return match[0]
        return "[name]" + match[0][len(word) :]

    return _CAPITALISED.sub(mask, text)


def _bare(word: str) -> str:
    return re.sub(r"['’](?:s|S|m|d|ll|ve|re)?$|['’]s\b.*$|[-'’]+$", "", word) or word


def _initials(phrase: str) -> str:
    return "".join(part[0] for part in re.split(r"[ -]", phrase))


def _starts_sentence(text: str, position: int) -> bool:
    before = text[max(0, position - 12) : position]
    if re.search(r"(?:^|\n)\s*-?\s*\(?[A-Za-z0-9]{1,2}[).:]\s*$", before):
        return True  # the letter of an option
    bare = before.rstrip(" \t\"'“”‘’«「『([{（-*_>~")
    if not bare:
        return position <= len(before) or not before.strip()
    if bare[-1] in ":;：；" and re.match(r"[\w’'-]+(?:,| and |、)", text[position : position + 40]):
        return False  # a list of names: "two inhabitants: Amelia, and Ben"
    closed = bare.rstrip(")]）】")
    if closed != bare:
        return closed[-1:] in (".", "!", "?", "。", "！", "？")
    return bare[-1] in _SENTENCE_END and not re.search(r"(?:\b[A-Z]|\b(?:vs|St|Jr|Sr|No))\.$", bare)


_SURNAME = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕"
_CHINESE_NAME = _replace(
    r"张三|李四|王五|小(?:明|红|华|刚|丽|强|芳|军|亮|美|兰|玲|英|杰|伟|宇|龙|雨|青|雪|梅|燕|娟|敏|静|莉|勇|平|东|云|飞|文|林|王|李|张|刘|陈|赵|黄|周|吴|胖|聪|乐|欢)(?![的]?时)"
    rf"|[{_SURNAME}](?:老师|叔叔|阿姨|先生|女士|同学|医生|师傅|爷爷|奶奶|大爷|大妈|经理|教授|小姐|奶奶|伯伯|婶婶)"
    rf"|老[王李张刘陈杨赵黄周吴孙](?=[\W]|有|在|的|和|买|去|把|说|家|给|从|每)"
    r"|[甲乙丙丁](?=[、，和与两三]|车|船|队|班|地|人|数|厂|仓|桶|站|港|、|的|有|每|先|比|是|在|到)",
    "[name]",
)

# ---- literals, formulas, boards, lists --------------------------------------------------------------------------

_CAPITALS = _replace(r"\b[A-Z]{2,}'?[A-Z]*(?:[ ]+[A-Z]+(?:'[A-Z]+)?)+\b", "[text]")
_LONG_TOKEN = _replace(
    r"(?<![\w\[])[A-Za-z0-9_+/=#@%&|\\^~<>{}.,;:-]{28,}",
    lambda run: "[text]" if re.search(r"[A-Za-z0-9]", run[0]) else run[0],
)
_MIXED_TOKEN = _replace(
    rf"{_NO_LETTER_BEFORE}(?=[A-Za-z]*\d)(?=\d*[A-Za-z])[A-Za-z0-9]{{5,}}{_NO_LETTER_AFTER}", "[text]"
)
_SYMBOLS = _replace(
    r"(?:[^\w\s\[\]]|\[(?![a-z])|(?<![a-z])\]){12,}", lambda run: "[code]" if len(set(run[0])) > 1 else run[0]
)
_PICTURES = _replace(
    "[\U0001f000-\U0001faff\u2600-\u27bf\u2b00-\u2bff\ufe0f\u200d\U000e0100-\U000e01ef]"
    "(?:\\s*[\U0001f000-\U0001faff\u2600-\u27bf\u2b00-\u2bff\ufe0f\u200d\U000e0100-\U000e01ef])*",
    "[text]",
)
_CUE = (
    r"(?:\b(?:following|this|these|given|below|provided)\b[^:\n]{0,60}?\b(?:sentences?|texts?|words?|strings?|phrases?|letters?|characters?"
    r"|lists?|sequences?|paragraphs?|messages?)\b[^:\n]{0,40}|(?:下列|以下|下面|这个|这些|给定)[^：:\n]{0,20}"
    r"(?:句子|文本|词语|单词|字符串|短语|字母|列表|序列|句|词|字)[^：:\n]{0,12})"
)
_AFTER_COLON = _replace(rf"({_CUE}[:：][ ]*)(?!\s*\[|\n)[^\n]*[^\n?？](?=\n|\Z)", r"\1[text]", re.IGNORECASE)
_LONE_WORD = _replace(r"(?<=\w[:：] )(?<!Question: )(?<!Answer: )(?!\[)[a-z]+(?=\n|\Z)", "[text]")
_FUNCTION = r"(?:(?:a|arc)?(?:sin|cos|tan)h?|log|ln|exp|sqrt)"
_VALUE = r"(?:\[(?:number|expression)\][A-Za-z]?|[A-Za-z](?![\w'’]))"
_TERM = rf"(?:{_FUNCTION}\s?)?(?:\(\s?[-−]?\s?{_VALUE}\s?\)|(?<![A-Za-z]){_VALUE})[²³°]?"
_FIRST_SIGN = r"(?:(?<![\w\])）])(?<![\w\])）] )[-+−±~]\s?|[√∫]\s?)?"
_OPERATOR = r"(?:\*\*|<=|>=|==|!=|<<|>>|[-+*/^=<>×÷·−±%≤≥≠∧∨⊕]|mod\b)"
_FORMULA = re.compile(rf"{_FIRST_SIGN}{_TERM}(?:\s?{_OPERATOR}\s?(?:[-+−±~√∫]\s?){{0,2}}{_TERM})+(?:\s?=\s?\??)?")
_OPEN_FORMULA = _replace(r"\[(?:number|expression)\]\s?=(?:\s?[?？])?(?=\s|$|[.。])", "[expression]")
_WRAPPED_FORMULA = _replace(
    rf"[(（]\s?[-−]?\s?\[expression\]\s?[)）]|[-−]\s?\(\s?\[number\]\s?\)|∫\s?\[(?:number|expression)\](?:\s?d[a-z]\b)?"
    rf"|\[expression\]\s?d[a-z]\b|(?<![\w\])])[-−+]\[expression\]|\b{_FUNCTION}\s?(?:\[(?:number|expression)\]|\(\s?(?:[a-z]|\[number\])\s?\))",
    "[expression]",
)
_SIGNED = _replace(r"(?<![\w\])])[-−+]\[number\]", "[number]")
_VARIABLE = _replace(
    r"\b(of|for|for real|variable|variables) (?:[b-zB-HJ-Z](?![\w'’.*+^])|a(?=[:,?]| (?:that|in|if|such)\b))",
    r"\1 [variable]",
)
_ITEM = r"(?:\[(?:number|text|name|expression|list|date|time|code)\])"
_COMMA_LIST = _replace(
    rf"{_ITEM}(?:\s?[,，、;；]\s?(?:and\s|or\s|和|或)?{_ITEM})+(?:\s?,?\s(?:and|or)\s{_ITEM}|(?:和|与|或|以及){_ITEM})?",
    "[list]",
)
_LIST_TAIL = _replace(rf"\[list\]\s?(?:[,，、;；]\s?)?(?:and|or|和|与|或)?\s?(?={_ITEM}){_ITEM}", "[list]")
_SPACED_LIST = _replace(r"\[(number|text|grid|expression)\](?: \[(?:\1|list)\])+", "[list]")
_COUNTED = r"\[number\] [a-z][a-z-]*(?: [a-z][a-z-]*){0,2}?"
_COUNTED_LIST = _replace(
    rf"{_COUNTED}(?:, (?:and )?{_COUNTED})+(?: and {_COUNTED})?(?=\s?[.?!;:]|\n|\Z)"
    rf"|\[list\], (?:and )?{_COUNTED}(?=\s?[,.?!;:]|\n|\Z)",
    "[list]",
)
_WORD = r"[A-Za-z\u00c0-\u024f\u4e00-\u9fff'’-]{1,24}"
_WORD_LIST = _replace(
    rf"(?<=[:：])(\s?)(?:{_WORD}|{MARK})(?:[ ]?[,，、]\s?(?:{_WORD}|{MARK})){{2,}}"
    rf"(?:\s?(?:,\s)?(?:and|or|和|或)\s?{_WORD})?(?=\s*(?:[.。?？!！]|\n|\Z))",
    r"\1[list]",
)
_BRACKETED_LIST = _replace(
    rf"\[\s*(?:{_ITEM}|'')(?:\s*[,，;；]?\s*(?:{_ITEM}|''))*\s*[,，]?\s*\]|[({{（【]\s*{_ITEM}(?:\s*[,，;；]?\s*{_ITEM})+\s*[)}}）】]"
    rf"|[({{（【]\s*\[list\]\s*[)}}）】]|\[\s*(?:{_WORD}\s*,\s*){{2,}}{_WORD}\s*\]|\[\s*\]",
    "[list]",
)
_REPEATED = _replace(rf"({MARK})(?:[ ]*\1)+", r"\1")


def _mask_formulas(text: str) -> str:
    def mask(match: re.Match[str]) -> str:
        # "A - B" and "a-z" are no formulas; "x = y + 1" and anything with a number is.
        is_formula = "[" in match[0] or re.search(r"[=+*/^]", match[0])
        return "[expression]" if is_formula else match[0]

    return _FORMULA.sub(mask, text)


_DRAWING = re.compile("[\u2500-\u259f]{3}|[\u2500-\u259f] [\u2500-\u259f]")
_LITERAL_LINE = re.compile(rf"(?:{MARK}|[^\w\s]|_|\b\w\b|\s)+")


def _mask_boards(text: str) -> str:
    """Runs of lines without words (matrices, boards, ASCII drawings) become one [grid]; equal neighbours one line."""
    lines: list[str] = []
    run: list[str] = []
    for line in [*text.split("\n"), None]:
        if line is not None and (_is_literal(line) or (run and not line)):
            run.append(line)
            continue
        lines += _close_run(run)
        run = []
        if line is not None and (not line or not lines or line != lines[-1]):
            lines.append(line)
    return "\n".join(lines)


def _close_run(run: list[str]) -> list[str]:
    """A run of literal lines, with blank lines between and behind them, as one [grid] if it is more than one line."""
    blank_at_end = [""] if run and not run[-1] else []
    drawn = [line for line in run if line]
    return (["[grid]"] if len(drawn) > 1 else drawn) + blank_at_end


def _is_literal(line: str) -> bool:
    return bool(line) and bool(_LITERAL_LINE.fullmatch(line) or _DRAWING.search(line))


_RULES: tuple[Rule, ...] = (
    _shorten,
    _FENCED_CODE,
    _CODE_BLOCK,
    _tidy,
    _PASSAGE,
    _PASSAGE_BEFORE_QUESTION,
    _INLINE_CODE,
    _LATEX,
    _QUOTED,
    _ADDRESS,
    _PICTURES,
    _SYMBOLS,
    _BULLET,
    _DATE,
    _TIME,
    _DATE_AND_TIME,
    _LONG_TOKEN,
    _NUMBER,
    _NUMBER_WORDS,
    _CHINESE_NUMBER,
    _MIXED_TOKEN,
    _CAPITALS,
    _TITLED,
    _mask_names,
    _CHINESE_NAME,
    _REPEATED,
    _mask_formulas,
    _WRAPPED_FORMULA,
    _SIGNED,
    _OPEN_FORMULA,
    _VARIABLE,
    _WORD_LIST,
    _COMMA_LIST,
    _LIST_TAIL,
    _SPACED_LIST,
    _COUNTED_LIST,
    _BRACKETED_LIST,
    _AFTER_COLON,
    _LONE_WORD,
    _mask_boards,
    _tidy,
)
