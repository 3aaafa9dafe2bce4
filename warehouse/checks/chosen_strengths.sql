-- chosen_strengths: one row per run, model, concept and positions;
-- every scored cell has a strength with both signs.
select
    run,
    model,
    concept,
    positions,
    'grain' as violation,
    count(*) as num_rows
from chosen_strengths
group by run, model, concept, positions
having count(*) > 1
union all
select
    scores.run,
    scores.model,
    scores.concept,
    scores.positions,
    'one-sided' as violation,
    count(*) as num_rows
from scores
anti join chosen_strengths
    on scores.run = chosen_strengths.run
    and scores.model = chosen_strengths.model
    and scores.concept = chosen_strengths.concept
    and scores.positions = chosen_strengths.positions
group by scores.run, scores.model, scores.concept, scores.positions
