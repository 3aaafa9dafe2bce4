-- prompts: one row per run, concept, split and prompt.
select
    run,
    concept,
    split,
    prompt,
    'grain' as violation,
    count(*) as num_rows
from prompts
group by run, concept, split, prompt
having count(*) > 1
