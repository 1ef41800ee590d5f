"""Judges: programs that grade answers by a rubric in plain words, how far they agree with people, and their biases."""

from .agreement import Agreement, accuracy, agreement, cohen_kappa, krippendorff_alpha
from .asked import AskingMetric, grade_all
from .asking import Judgement, NoJudgement, ask
from .bias import JudgeCheck, LengthBias, check_judge
from .grading import JudgeMetric
from .loading import JudgeFile, load_judge
from .models import Models, NoModel
from .pairwise import Pair, Pairwise, PositionBias, compare_pairs
from .preference import PreferenceMetric, Preferences, prefer
from .programs import Judge, JudgeProgram, Subject, checker, grader, preferrer
from .reading import asking_in, check_judges, judge_files, judge_in, metric_of, preference_in

__all__ = [
    "Agreement",
    "AskingMetric",
    "Judge",
    "JudgeCheck",
    "JudgeFile",
    "JudgeMetric",
    "JudgeProgram",
    "Judgement",
    "LengthBias",
    "Models",
    "NoJudgement",
    "NoModel",
    "Pair",
    "Pairwise",
    "PositionBias",
    "PreferenceMetric",
    "Preferences",
    "Subject",
    "accuracy",
    "agreement",
    "ask",
    "asking_in",
    "check_judge",
    "check_judges",
    "checker",
    "cohen_kappa",
    "compare_pairs",
    "grade_all",
    "grader",
    "judge_files",
    "judge_in",
    "krippendorff_alpha",
    "load_judge",
    "metric_of",
    "prefer",
    "preference_in",
    "preferrer",
]
