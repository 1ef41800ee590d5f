"""Judges: programs that grade answers by a rubric in plain words, how far they agree with people, and their biases."""

from .agreement import Agreement, accuracy, agreement, cohen_kappa, krippendorff_alpha
from .asking import Judgement, NoJudgement, ask
from .bias import JudgeCheck, LengthBias, check_judge
from .grading import JudgeMetric, Models, NoModel, grade_all
from .pairwise import Pair, Pairwise, PositionBias, compare_pairs
from .programs import Judge, Subject, checker, grader, preferrer
from .reading import judge_in, metric_of

__all__ = [
    "Agreement",
    "Judge",
    "JudgeCheck",
    "JudgeMetric",
    "Judgement",
    "LengthBias",
    "Models",
    "NoJudgement",
    "NoModel",
    "Pair",
    "Pairwise",
    "PositionBias",
    "Subject",
    "accuracy",
    "agreement",
    "ask",
    "check_judge",
    "checker",
    "cohen_kappa",
    "compare_pairs",
    "grade_all",
    "grader",
    "judge_in",
    "krippendorff_alpha",
    "metric_of",
    "preferrer",
]
