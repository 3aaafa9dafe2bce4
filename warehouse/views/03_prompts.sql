-- grain:   one row per run, concept, split and prompt
-- source:  stored_prompts
-- formula: none
-- caveat:  matching is the letter (A or B) of the answer that shows the behaviour
select
    run,
    concept,
    split,
    prompt,
    question,
    choice_a,
    choice_b,
    matching
from stored_prompts
