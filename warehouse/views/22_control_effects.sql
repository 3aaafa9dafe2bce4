-- grain:   one row per run, model, concept, positions and layer
-- source:  control_prompt_effects, control_vector_effects
-- formula: mean_delta, mean_abs_delta and max_abs_delta over the controls' deltas;
--          delta_low and delta_high = mean_delta -/+ 1.96 standard errors over prompts, each prompt averaged
--          over the controls
-- caveat:  the interval is of the mean over controls, not the range in which one control falls: to ask
--          whether a vector beats chance, compare delta with max_abs_delta
-- build:   once
with by_prompt as (
    select
        run,
        model,
        concept,
        positions,
        layer,
        prompt,
        avg(effect) as effect
    from control_prompt_effects
    group by run, model, concept, positions, layer, prompt
),

by_layer as (
    select
        run,
        model,
        concept,
        positions,
        layer,
        count(*) as num_prompts,
        avg(effect) as mean_effect,
        1.96 * stddev_samp(effect) / sqrt(count(*)) as half_width
    from by_prompt
    group by run, model, concept, positions, layer
),

by_control as (
    select
        run,
        model,
        concept,
        positions,
        layer,
        count(*) as num_controls,
        avg(delta) as mean_delta,
        avg(abs(delta)) as mean_abs_delta,
        max(abs(delta)) as max_abs_delta
    from control_vector_effects
    group by run, model, concept, positions, layer
)
select
    by_control.run,
    by_control.model,
    by_control.concept,
    by_control.positions,
    by_control.layer,
    by_control.num_controls,
    by_layer.num_prompts,
    by_control.mean_delta,
    by_control.mean_abs_delta,
    by_control.max_abs_delta,
    by_layer.mean_effect - by_layer.half_width as delta_low,
    by_layer.mean_effect + by_layer.half_width as delta_high
from by_control
inner join by_layer
    on by_control.run = by_layer.run
    and by_control.model = by_layer.model
    and by_control.concept = by_layer.concept
    and by_control.positions = by_layer.positions
    and by_control.layer = by_layer.layer
