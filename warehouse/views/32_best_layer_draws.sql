-- grain:   one row per run, model, concept, positions and draw (draws 0 to 999)
-- source:  prompt_effects, control_prompt_effects, chosen_layers
-- formula: percentile bootstrap: the prompts are drawn with replacement; delta = mean effect of the drawn
--          prompts at the best layer; control_delta = the same of the controls, averaged per prompt.
--          The hash is hashed again: modulo the number of prompts, hash() of several columns is far from
--          uniform draws (at 40 prompts one interval came out 17 % too wide)
-- caveat:  draw k takes the same prompts of a concept in every model and run with as many prompts, so
--          differences between models may be formed draw by draw. The layer is held fixed. Draws come from
--          DuckDB's hash: the same for one version of DuckDB, perhaps not for the next
-- build:   once
with effects as (
    select
        prompt_effects.run,
        prompt_effects.model,
        prompt_effects.concept,
        prompt_effects.positions,
        list(prompt_effects.effect order by prompt_effects.prompt) as effects,
        count(*) as num_prompts
    from prompt_effects
    inner join chosen_layers
        on prompt_effects.run = chosen_layers.run
        and prompt_effects.model = chosen_layers.model
        and prompt_effects.concept = chosen_layers.concept
        and prompt_effects.positions = chosen_layers.positions
        and prompt_effects.layer = chosen_layers.layer
    group by prompt_effects.run, prompt_effects.model, prompt_effects.concept, prompt_effects.positions
),

control_means as (
    select
        control_prompt_effects.run,
        control_prompt_effects.model,
        control_prompt_effects.concept,
        control_prompt_effects.positions,
        control_prompt_effects.prompt,
        avg(control_prompt_effects.effect) as effect
    from control_prompt_effects
    inner join chosen_layers
        on control_prompt_effects.run = chosen_layers.run
        and control_prompt_effects.model = chosen_layers.model
        and control_prompt_effects.concept = chosen_layers.concept
        and control_prompt_effects.positions = chosen_layers.positions
        and control_prompt_effects.layer = chosen_layers.layer
    group by
        control_prompt_effects.run,
        control_prompt_effects.model,
        control_prompt_effects.concept,
        control_prompt_effects.positions,
        control_prompt_effects.prompt
),

controls as (
    select
        run,
        model,
        concept,
        positions,
        list(effect order by prompt) as effects,
        count(*) as num_prompts
    from control_means
    group by run, model, concept, positions
)
select
    effects.run,
    effects.model,
    effects.concept,
    effects.positions,
    draws.draw,
    list_avg(list_transform(
        range(effects.num_prompts),
        lambda i: effects.effects[
            1 + (hash(hash(effects.concept, draws.draw, i)) % effects.num_prompts::ubigint)::bigint
        ]
    )) as delta,
    list_avg(list_transform(
        range(controls.num_prompts),
        lambda i: controls.effects[
            1 + (hash(hash(effects.concept, draws.draw, i)) % controls.num_prompts::ubigint)::bigint
        ]
    )) as control_delta
from effects
left join controls
    on effects.run = controls.run
    and effects.model = controls.model
    and effects.concept = controls.concept
    and effects.positions = controls.positions
cross join range(1000) as draws (draw)
