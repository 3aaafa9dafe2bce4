-- grain:   one row per run, model, concept, positions and draw (draws 0 to 999)
-- source:  best_prompt_effects, control_prompt_effects, chosen_layers
-- formula: bootstrap over prompts with Poisson weights: in each draw a prompt counts w times, w from a Poisson
--          distribution of mean 1, the limit of drawing with replacement (Hanley and MacGibbon 2006).
--          delta = sum(w * effect) / sum(w) at the best layer; cohens_d the same way from the weighted means
--          and variances of both arms; control_delta = delta of the controls, averaged per prompt.
--          Weights are a matter of hash(concept, draw, i), hashed again (once only is far from uniform); a
--          draw of no prompt at all counts every prompt once
-- caveat:  draw k gives the same weights to the prompts of a concept in every model and run with as many
--          prompts, so differences between models may be formed draw by draw. The layer is held fixed.
--          Draws come from DuckDB's hash: the same for one version of DuckDB, perhaps not for the next
-- build:   once
with effects as (
    select
        run,
        model,
        concept,
        positions,
        count(*) as num_prompts,
        list(effect order by prompt) as effects,
        -- from the cell's own middle, so that squares lose no digits
        list(plus - middle order by prompt) as pluses,
        list((plus - middle) ** 2 + (minus - middle) ** 2 order by prompt) as squares
    from (
        select
            run,
            model,
            concept,
            positions,
            prompt,
            effect,
            plus,
            minus,
            avg((plus + minus) / 2) over (partition by run, model, concept, positions) as middle
        from best_prompt_effects
    ) as centred
    group by run, model, concept, positions
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
),

sizes as (
    select
        concept,
        num_prompts
    from effects
    union
    select
        concept,
        num_prompts
    from controls
),

uniform_draws as (
    select
        sizes.concept,
        sizes.num_prompts,
        draws.draw,
        list_transform(
            range(sizes.num_prompts), lambda i: hash(hash(sizes.concept, draws.draw, i)) / 18446744073709551616.0
        ) as uniforms
    from sizes
    cross join range(1000) as draws (draw)
),

poisson_draws as (
    select
        concept,
        num_prompts,
        draw,
        -- the inverse of the distribution function of Poisson(1)
        list_transform(uniforms, lambda u: case
            when u < 0.367879441 then 0.0::double
            when u < 0.735758882 then 1.0::double
            when u < 0.919698603 then 2.0::double
            when u < 0.981011843 then 3.0::double
            when u < 0.996340153 then 4.0::double
            when u < 0.999405815 then 5.0::double
            when u < 0.999916759 then 6.0::double
            else 7.0::double
        end) as weights
    from uniform_draws
),

weight_draws as (
    select
        concept,
        num_prompts,
        draw,
        case
            when list_sum(weights) > 0 then weights else list_transform(weights, lambda w: 1.0::double)
        end as weights,
        coalesce(nullif(list_sum(weights), 0), num_prompts) as total
    from poisson_draws
),

sums as (
    select
        effects.run,
        effects.model,
        effects.concept,
        effects.positions,
        weight_draws.draw,
        weight_draws.total,
        list_inner_product(effects.effects, weight_draws.weights) / weight_draws.total as delta,
        list_inner_product(effects.pluses, weight_draws.weights) / weight_draws.total as plus,
        list_inner_product(effects.squares, weight_draws.weights) as square
    from weight_draws
    inner join effects
        on weight_draws.concept = effects.concept
        and weight_draws.num_prompts = effects.num_prompts
),

control_sums as (
    select
        controls.run,
        controls.model,
        controls.concept,
        controls.positions,
        weight_draws.draw,
        list_inner_product(controls.effects, weight_draws.weights) / weight_draws.total as delta
    from weight_draws
    inner join controls
        on weight_draws.concept = controls.concept
        and weight_draws.num_prompts = controls.num_prompts
)
select
    sums.run,
    sums.model,
    sums.concept,
    sums.positions,
    sums.draw,
    sums.delta,
    sums.delta / nullif(sqrt(greatest(
        (sums.square - sums.total * (sums.plus ** 2 + (sums.plus - sums.delta) ** 2))
        / nullif(sums.total - 1, 0) / 2,
        0
    )), 0) as cohens_d,
    control_sums.delta as control_delta
from sums
left join control_sums
    on sums.run = control_sums.run
    and sums.model = control_sums.model
    and sums.concept = control_sums.concept
    and sums.positions = control_sums.positions
    and sums.draw = control_sums.draw
