-- grain:   one row per run, model, concept and positions
-- source:  layer_effects, chosen_layers, best_layer_draws, held_out_effects, control_effects, models
-- formula: the row of layer_effects with the largest delta; delta_low and delta_high = 2.5 and 97.5
--          percentile of the bootstrap over prompts (1,000 draws); held_out_delta = cross-fitted, the layer
--          chosen without the prompts it is judged on; control_delta_* = random vectors of the same norm at
--          the same layer
-- caveat:  the interval holds the layer fixed and is of these prompts: delta is optimistic where layers are
--          close, held_out_delta is not. control_delta_high bounds the mean over controls; a single random
--          vector may reach control_delta_max_abs
-- build:   once
with intervals as (
    select
        run,
        model,
        concept,
        positions,
        quantile_cont(delta, 0.025) as delta_low,
        quantile_cont(delta, 0.975) as delta_high,
        quantile_cont(control_delta, 0.025) as control_delta_low,
        quantile_cont(control_delta, 0.975) as control_delta_high
    from best_layer_draws
    group by run, model, concept, positions
)
select
    layer_effects.run,
    layer_effects.model,
    layer_effects.concept,
    layer_effects.positions,
    layer_effects.layer,
    layer_effects.depth,
    layer_effects.num_layers,
    layer_effects.num_prompts,
    layer_effects.strength,
    layer_effects.delta,
    intervals.delta_low,
    intervals.delta_high,
    held_out_effects.delta as held_out_delta,
    layer_effects.delta_plus_arm,
    layer_effects.delta_minus_arm,
    layer_effects.cohens_d,
    layer_effects.glass_delta,
    layer_effects.wrong_way_share,
    layer_effects.position_bias,
    layer_effects.median_choice_mass,
    layer_effects.vector_norm,
    layer_effects.residual_norm,
    control_effects.num_controls,
    control_effects.mean_delta as control_delta_mean,
    intervals.control_delta_low,
    intervals.control_delta_high,
    control_effects.max_abs_delta as control_delta_max_abs,
    models.architecture,
    models.method
from layer_effects
inner join chosen_layers
    on layer_effects.run = chosen_layers.run
    and layer_effects.model = chosen_layers.model
    and layer_effects.concept = chosen_layers.concept
    and layer_effects.positions = chosen_layers.positions
    and layer_effects.layer = chosen_layers.layer
inner join intervals
    on layer_effects.run = intervals.run
    and layer_effects.model = intervals.model
    and layer_effects.concept = intervals.concept
    and layer_effects.positions = intervals.positions
left join held_out_effects
    on layer_effects.run = held_out_effects.run
    and layer_effects.model = held_out_effects.model
    and layer_effects.concept = held_out_effects.concept
    and layer_effects.positions = held_out_effects.positions
left join control_effects
    on layer_effects.run = control_effects.run
    and layer_effects.model = control_effects.model
    and layer_effects.concept = control_effects.concept
    and layer_effects.positions = control_effects.positions
    and layer_effects.layer = control_effects.layer
left join models
    on layer_effects.run = models.run
    and layer_effects.model = models.model
