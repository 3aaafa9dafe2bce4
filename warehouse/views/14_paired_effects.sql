-- grain:   one row per run, model, concept, positions and layer
-- source:  prompt_effects
-- formula: d_z = mean effect / sample standard deviation of the effect over prompts, the paired effect size;
--          t = d_z * sqrt(num_prompts); wrong_way_share = share of prompts with effect < 0;
--          arms_correlation = correlation over prompts of plus and minus
-- caveat:  the slowest view: it pairs every prompt's two signs at every layer; filter by model and concept
--          where there are many scores. d_z grows as the arms correlate, so it does not compare with
--          cohens_d. Null where undefined or where no effect differs
select
    run,
    model,
    concept,
    positions,
    layer,
    count(*) as num_prompts,
    avg(effect) as delta,
    avg(effect) / nullif(stddev_samp(effect), 0) as d_z,
    avg(effect) / nullif(stddev_samp(effect), 0) * sqrt(count(*)) as t,
    count(*) filter (where effect < 0) / count(*) as wrong_way_share,
    corr(plus, minus) as arms_correlation
from prompt_effects
group by run, model, concept, positions, layer
