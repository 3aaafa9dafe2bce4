-- grain:   one row per run, model, concept, positions and layer
-- source:  prompt_effects, scores, models, vectors
-- formula: depth = layer / num_layers; delta = mean effect over prompts (mean at +s minus mean at -s);
--          cohens_d = delta / sqrt((sd(plus)^2 + sd(minus)^2) / 2), sample standard deviations;
--          glass_delta = delta / sd(baseline); delta_plus_arm is +s against 0, delta_minus_arm 0 against -s;
--          wrong_way_share = share of prompts with effect < 0;
--          position_bias = half of (mean baseline where the matching answer is A minus where it is B);
--          median_choice_mass is of the unsteered prompts, of all scores where none is unsteered
-- caveat:  cohens_d treats the two arms as independent; the prompts are the same in both. Effect sizes are
--          null where a standard deviation is zero or undefined. A layer with vectors of two sites appears
--          twice (the check of vectors finds it)
-- build:   once
with masses as (
    select
        run,
        model,
        concept,
        positions,
        layer,
        median(choice_mass) filter (where strength = 0) as unsteered,
        median(choice_mass) as overall
    from scores
    group by run, model, concept, positions, layer
),

effects as (
    select
        run,
        model,
        concept,
        positions,
        layer,
        count(*) as num_prompts,
        any_value(strength) as strength,
        avg(baseline) as mean_baseline,
        avg(plus) as mean_plus,
        avg(minus) as mean_minus,
        avg(effect) as delta,
        avg(plus - baseline) as delta_plus_arm,
        avg(baseline - minus) as delta_minus_arm,
        sqrt((var_samp(plus) + var_samp(minus)) / 2) as sd_arms,
        stddev_samp(baseline) as sd_baseline,
        count(*) filter (where effect < 0) / count(*) as wrong_way_share,
        (avg(baseline) filter (where matching = 'A') - avg(baseline) filter (where matching = 'B')) / 2
            as position_bias
    from prompt_effects
    group by run, model, concept, positions, layer
)
select
    effects.run,
    effects.model,
    effects.concept,
    effects.positions,
    effects.layer,
    effects.layer / models.num_layers as depth,
    models.num_layers,
    effects.num_prompts,
    effects.strength,
    effects.mean_baseline,
    effects.mean_plus,
    effects.mean_minus,
    effects.delta,
    effects.delta_plus_arm,
    effects.delta_minus_arm,
    effects.delta / nullif(effects.sd_arms, 0) as cohens_d,
    effects.delta / nullif(effects.sd_baseline, 0) as glass_delta,
    effects.wrong_way_share,
    effects.position_bias,
    coalesce(masses.unsteered, masses.overall) as median_choice_mass,
    vectors.norm as vector_norm,
    vectors.residual_norm
from effects
inner join masses
    on effects.run = masses.run
    and effects.model = masses.model
    and effects.concept = masses.concept
    and effects.positions = masses.positions
    and effects.layer = masses.layer
left join models
    on effects.run = models.run
    and effects.model = models.model
left join vectors
    on effects.run = vectors.run
    and effects.model = vectors.model
    and effects.concept = vectors.concept
    and effects.layer = vectors.layer
