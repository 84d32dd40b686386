"""BIG-Bench Hard: the mean over its 27 tasks."""

_tasks = [
    "bbh-date_understanding",
    "bbh-disambiguation_qa",
    "bbh-geometric_shapes",
    "bbh-hyperbaton",
    "bbh-logical_deduction_five_objects",
    "bbh-logical_deduction_seven_objects",
    "bbh-logical_deduction_three_objects",
    "bbh-movie_recommendation",
    "bbh-penguins_in_a_table",
    "bbh-reasoning_about_colored_objects",
    "bbh-ruin_names",
    "bbh-salient_translation_error_detection",
    "bbh-snarks",
    "bbh-temporal_sequences",
    "bbh-tracking_shuffled_objects_five_objects",
    "bbh-tracking_shuffled_objects_seven_objects",
    "bbh-tracking_shuffled_objects_three_objects",
    "bbh-boolean_expressions",
    "bbh-causal_judgement",
    "bbh-dyck_languages",
    "bbh-formal_fallacies",
    "bbh-multistep_arithmetic_two",
    "bbh-navigate",
    "bbh-object_counting",
    "bbh-sports_understanding",
    "bbh-web_of_lies",
    "bbh-word_sorting",
]

bbh_summary_groups = [dict(name="bbh", subsets=_tasks)]
