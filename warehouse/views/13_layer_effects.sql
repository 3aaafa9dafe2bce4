-- grain:   one row per run, model, concept, positions and layer
-- source:  layer_deltas, scores, models, vectors
-- formula: the figures of layer_deltas; depth = layer / num_layers;
--          median_choice_mass is of the unsteered prompts, of all scores where none is unsteered;
--          low_choice_mass = median_choice_mass under 0.01: on most prompts the model would answer neither
-- caveat:  what pairs a prompt's strengths (d_z, wrong_way_share) is in paired_effects and best_layers. A layer
--          with vectors of two sites appears twice (the check of vectors finds it)
with masses as (
    select
        run,
        model,
        concept,
        positions,
        layer,
        coalesce(
            median(choice_mass) filter (where strength = 0), median(choice_mass) filter (where strength <> 0)
        ) as median_choice_mass
    from scores
    group by run, model, concept, positions, layer
)
select
    layer_deltas.run,
    layer_deltas.model,
    layer_deltas.concept,
    layer_deltas.positions,
    layer_deltas.layer,
    layer_deltas.layer / models.num_layers as depth,
    models.num_layers,
    layer_deltas.num_prompts,
    layer_deltas.strength,
    layer_deltas.mean_baseline,
    layer_deltas.mean_plus,
    layer_deltas.mean_minus,
    layer_deltas.delta,
    layer_deltas.delta_plus_arm,
    layer_deltas.delta_minus_arm,
    layer_deltas.cohens_d,
    layer_deltas.glass_delta,
    layer_deltas.position_bias,
    layer_deltas.position_effect,
    layer_deltas.balanced_delta,
    layer_deltas.balanced_cohens_d,
    layer_deltas.balanced_glass_delta,
    masses.median_choice_mass,
    masses.median_choice_mass < 0.01 as low_choice_mass,
    vectors.norm as vector_norm,
    vectors.residual_norm
from layer_deltas
inner join masses
    on layer_deltas.run = masses.run
    and layer_deltas.model = masses.model
    and layer_deltas.concept = masses.concept
    and layer_deltas.positions = masses.positions
    and layer_deltas.layer = masses.layer
left join models
    on layer_deltas.run = models.run
    and layer_deltas.model = models.model
left join vectors
    on layer_deltas.run = vectors.run
    and layer_deltas.model = vectors.model
    and layer_deltas.concept = vectors.concept
    and layer_deltas.layer = vectors.layer
