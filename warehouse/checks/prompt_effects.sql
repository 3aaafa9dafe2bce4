-- prompt_effects: one row per run, model, concept, positions, layer and prompt;
-- every prompt scored at +s or -s at a layer was scored at both.
select
    run,
    model,
    concept,
    positions,
    layer,
    prompt,
    'grain' as violation,
    count(*) as num_rows
from prompt_effects
group by run, model, concept, positions, layer, prompt
having count(*) > 1
union all
select
    scores.run,
    scores.model,
    scores.concept,
    scores.positions,
    scores.layer,
    scores.prompt,
    'one-sided' as violation,
    count(*) as num_rows
from scores
inner join chosen_strengths
    on scores.run = chosen_strengths.run
    and scores.model = chosen_strengths.model
    and scores.concept = chosen_strengths.concept
    and scores.positions = chosen_strengths.positions
    and abs(scores.strength) = chosen_strengths.strength
group by scores.run, scores.model, scores.concept, scores.positions, scores.layer, scores.prompt
having count(distinct scores.strength) < 2
