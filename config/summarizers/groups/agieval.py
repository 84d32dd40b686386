"""AGIEval: all tasks, the Chinese and the English ones, and the Gaokao (arXiv 2304.06364)."""

_chinese = [
    "agieval-gaokao-biology",
    "agieval-gaokao-chemistry",
    "agieval-gaokao-chinese",
    "agieval-gaokao-english",
    "agieval-gaokao-geography",
    "agieval-gaokao-history",
    "agieval-gaokao-mathqa",
    "agieval-logiqa-zh",
    "agieval-gaokao-physics",
    "agieval-jec-qa-ca",
    "agieval-jec-qa-kd",
    "agieval-gaokao-mathcloze",
]
_english = [
    "agieval-aqua-rat",
    "agieval-logiqa-en",
    "agieval-lsat-ar",
    "agieval-lsat-lr",
    "agieval-lsat-rc",
    "agieval-sat-en",
    "agieval-sat-en-without-passage",
    "agieval-sat-math",
    "agieval-math",
]
_gaokao = [
    "agieval-gaokao-biology",
    "agieval-gaokao-chemistry",
    "agieval-gaokao-chinese",
    "agieval-gaokao-english",
    "agieval-gaokao-geography",
    "agieval-gaokao-history",
    "agieval-gaokao-mathqa",
    "agieval-gaokao-physics",
    "agieval-gaokao-mathcloze",
]

agieval_summary_groups = [
    dict(name="agieval-chinese", subsets=_chinese),
    dict(name="agieval-english", subsets=_english),
    dict(name="agieval-gaokao", subsets=_gaokao),
    dict(name="agieval", subsets=[*_chinese, *_english]),
]
