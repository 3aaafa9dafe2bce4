-- grain:   one row per run, model, concept, positions, layer and strength
-- source:  strength_sums
-- formula: mean_logit_diff = mean over prompts of logit_diff_matching at the strength; shift = that minus the
--          mean at strength 0; standard_error = sample standard deviation / sqrt(num_prompts)
-- caveat:  standard_error is of the mean, over prompts; most of it is shared by all strengths of a cell, so it
--          is not the error of shift. shift is null where strength 0 was not scored
with strengths as (
    select
        run,
        model,
        concept,
        positions,
        layer,
        strength,
        sum(num_prompts)::bigint as num_prompts,
        sum(total) / sum(num_prompts) as mean_logit_diff,
        greatest(sum(total_squares) - sum(total) ** 2 / sum(num_prompts), 0) / nullif(sum(num_prompts) - 1, 0)
            as variance
    from strength_sums
    group by run, model, concept, positions, layer, strength
)
select
    run,
    model,
    concept,
    positions,
    layer,
    strength,
    num_prompts,
    mean_logit_diff,
    mean_logit_diff - first_value(case when strength = 0 then mean_logit_diff end) over (
        partition by run, model, concept, positions, layer order by abs(strength)
    ) as shift,
    sqrt(variance / num_prompts) as standard_error
from strengths
