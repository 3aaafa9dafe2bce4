-- grain:   one row per run, model, concept, positions and layer that has more than two strengths beside 0
-- source:  strength_effects
-- formula: slope = least-squares slope of mean_logit_diff over strength, nats per unit of strength, all
--          strengths weighted alike, 0 included; linearity = r squared of that line; monotone = the mean rises
--          from each strength to the next; delta_of_slope = 2 * slope, to be compared with a delta at 1
-- caveat:  a line is a summary: a response that saturates has a small slope and a small linearity
with steps as (
    select
        run,
        model,
        concept,
        positions,
        layer,
        strength,
        num_prompts,
        mean_logit_diff,
        mean_logit_diff > lag(mean_logit_diff) over (
            partition by run, model, concept, positions, layer order by strength
        ) as rises
    from strength_effects
)
select
    run,
    model,
    concept,
    positions,
    layer,
    count(*) as num_strengths,
    min(strength) as lowest_strength,
    max(strength) as highest_strength,
    min(num_prompts) as num_prompts,
    regr_slope(mean_logit_diff, strength) as slope,
    2 * regr_slope(mean_logit_diff, strength) as delta_of_slope,
    regr_r2(mean_logit_diff, strength) as linearity,
    bool_and(coalesce(rises, true)) as monotone
from steps
group by run, model, concept, positions, layer
having count(*) filter (where strength <> 0) > 2
