"""The sentence before the first question of MMLU, CMMLU and BBH, as lm-evaluation-harness 0.4.13 shows it.

It stands once, before the examples, and goes with each question in its metadata (`prompts.OPENING`).
"""

import re

from metamoe_backend.evaluate.prompts import BBH

_ORDER = "A logical deduction task which requires deducing the order of a sequence of objects."
_SWAPS = (
    "A task requiring determining the final positions of a set of objects given their initial positions and a "
    "description of a sequence of swaps."
)
_BBH = {
    "boolean_expressions": "Evaluate the result of a random Boolean expression.",
    "causal_judgement": "Answer questions about causal attribution.",
    "date_understanding": "Infer the date from context.",
    "disambiguation_qa": "Clarify the meaning of sentences with ambiguous pronouns.",
    "dyck_languages": "Correctly close a Dyck-n word.",
    "formal_fallacies": "Distinguish deductively valid arguments from formal fallacies.",
    "geometric_shapes": "Name geometric shapes from their SVG paths.",
    "hyperbaton": "Order adjectives correctly in English sentences.",
    "logical_deduction_five_objects": _ORDER,
    "logical_deduction_seven_objects": _ORDER,
    "logical_deduction_three_objects": _ORDER,
    "movie_recommendation": "Recommend movies similar to the given list of movies.",
    "multistep_arithmetic_two": "Solve multi-step arithmetic problems.",
    "navigate": "Given a series of navigation instructions, determine whether one would end up back at the starting "
    "point.",
    "object_counting": "Questions that involve enumerating objects and asking the model to count them.",
    "penguins_in_a_table": "Answer questions about a table of penguins and their attributes.",
    "reasoning_about_colored_objects": "Answer extremely simple questions about the colors of objects on a surface.",
    "ruin_names": "Select the humorous edit that 'ruins' the input movie or musical artist name.",
    "salient_translation_error_detection": "Detect the type of error in an English translation of a German source "
    "sentence.",
    "snarks": "Determine which of two sentences is sarcastic.\n\nAccording to Cambridge University Dictionary, sarcasm "
    "is \"the use of remarks that clearly mean the opposite of what they say, made in order to hurt someone's feelings "
    'or to criticize something in a humorous way." Sarcastic sentences often contain satirical or ironic utterances, '
    "hyperboles, ambivalent or witty remarks.",
    "sports_understanding": "Determine whether an artificially constructed sentence relating to sports is plausible or "
    "not.",
    "temporal_sequences": "Task description: Answer questions about which times certain events could have occurred.",
    "tracking_shuffled_objects_five_objects": _SWAPS,
    "tracking_shuffled_objects_seven_objects": _SWAPS,
    "tracking_shuffled_objects_three_objects": _SWAPS,
    "web_of_lies": "Evaluate a random boolean function expressed as a word problem.",
    "word_sorting": "Sort a list of words.",
}
"""By the name of the part of BBH."""
_CMMLU = {
    "agronomy": "农学",
    "anatomy": "解剖学",
    "ancient_chinese": "古汉语",
    "arts": "艺术学",
    "astronomy": "天文学",
    "business_ethics": "商业伦理",
    "chinese_civil_service_exam": "中国公务员考试",
    "chinese_driving_rule": "中国驾驶规则",
    "chinese_food_culture": "中国饮食文化",
    "chinese_foreign_policy": "中国外交政策",
    "chinese_history": "中国历史",
    "chinese_literature": "中国文学",
    "chinese_teacher_qualification": "中国教师资格",
    "clinical_knowledge": "临床知识",
    "college_actuarial_science": "大学精算学",
    "college_education": "大学教育学",
    "college_engineering_hydrology": "大学工程水文学",
    "college_law": "大学法律",
    "college_mathematics": "大学数学",
    "college_medical_statistics": "大学医学统计",
    "college_medicine": "大学医学",
    "computer_science": "计算机科学",
    "computer_security": "计算机安全",
    "conceptual_physics": "概念物理学",
    "construction_project_management": "建设工程管理",
    "economics": "经济学",
    "education": "教育学",
    "electrical_engineering": "电气工程",
    "elementary_chinese": "小学语文",
    "elementary_commonsense": "小学常识",
    "elementary_information_and_technology": "小学信息技术",
    "elementary_mathematics": "初等数学",
    "ethnology": "民族学",
    "food_science": "食品科学",
    "genetics": "遗传学",
    "global_facts": "全球事实",
    "high_school_biology": "高中生物",
    "high_school_chemistry": "高中化学",
    "high_school_geography": "高中地理",
    "high_school_mathematics": "高中数学",
    "high_school_physics": "高中物理学",
    "high_school_politics": "高中政治",
    "human_sexuality": "人类性行为",
    "international_law": "国际法学",
    "journalism": "新闻学",
    "jurisprudence": "法理学",
    "legal_and_moral_basis": "法律与道德基础",
    "logical": "逻辑学",
    "machine_learning": "机器学习",
    "management": "管理学",
    "marketing": "市场营销",
    "marxist_theory": "马克思主义理论",
    "modern_chinese": "现代汉语",
    "nutrition": "营养学",
    "philosophy": "哲学",
    "professional_accounting": "专业会计",
    "professional_law": "专业法学",
    "professional_medicine": "专业医学",
    "professional_psychology": "专业心理学",
    "public_relations": "公共关系",
    "security_study": "安全研究",
    "sociology": "社会学",
    "sports_science": "体育学",
    "traditional_chinese_medicine": "中医中药",
    "virology": "病毒学",
    "world_history": "世界历史",
    "world_religions": "世界宗教",
}
"""Subjects in Chinese, by the name of the part of CMMLU."""


def make_mmlu_opening(subject: str) -> str:
    """subject: as the set names it, such as high_school_us_history."""
    return f"The following are multiple choice questions (with answers) about {subject.replace('_', ' ')}."


def find_opening(benchmark: str, task: str) -> str | None:
    """That of the part of BBH or CMMLU whose name the task's is or ends with (bbh_word_sorting); None where there is
    none, as for other benchmarks."""
    if benchmark == BBH:
        return _find_part(_BBH, task)
    subject = _find_part(_CMMLU, task) if benchmark == "CMMLU" else None
    return f"以下是关于{subject}的单项选择题，请直接给出正确答案的选项。" if subject else None


def _find_part(parts: dict[str, str], task: str) -> str | None:
    """What belongs to the longest name that the task's ends with: college_education is not education."""
    name = "_" + re.sub(r"[^a-z0-9]+", "_", task.lower())
    found = max((part for part in parts if name.endswith(f"_{part}")), key=len, default=None)
    return None if found is None else parts[found]
