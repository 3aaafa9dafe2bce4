-- grain:   one row per run, model, concept and positions
-- source:  strength_sums, chosen_strengths
-- formula: cross-fitting over the five folds of strength_sums: the best layer is chosen on the prompts outside
--          a fold and judged on those inside; delta = mean over the folds of the delta inside at the layer
--          that was chosen outside, weighted by their prompts
-- caveat:  folds are by hash, alike for every model and not quite of one size; null (no row) with one prompt
-- build:   once
with arms as (
    select
        strength_sums.run,
        strength_sums.model,
        strength_sums.concept,
        strength_sums.positions,
        strength_sums.layer,
        strength_sums.fold,
        strength_sums.strength > 0 as is_plus,
        sum(strength_sums.num_prompts) as num_prompts,
        sum(strength_sums.total) as total
    from strength_sums
    inner join chosen_strengths
        on strength_sums.run = chosen_strengths.run
        and strength_sums.model = chosen_strengths.model
        and strength_sums.concept = chosen_strengths.concept
        and strength_sums.positions = chosen_strengths.positions
        and abs(strength_sums.strength) = chosen_strengths.strength
    group by
        strength_sums.run,
        strength_sums.model,
        strength_sums.concept,
        strength_sums.positions,
        strength_sums.layer,
        strength_sums.fold,
        strength_sums.strength > 0
),

split as (
    select
        run,
        model,
        concept,
        positions,
        layer,
        fold,
        is_plus,
        num_prompts,
        total / num_prompts as inside,
        (sum(total) over whole - total) / nullif(sum(num_prompts) over whole - num_prompts, 0) as outside
    from arms
    window whole as (partition by run, model, concept, positions, layer, is_plus)
),

folds as (
    select
        run,
        model,
        concept,
        positions,
        layer,
        fold,
        min(num_prompts) as num_prompts,
        max(inside) filter (where is_plus) - max(inside) filter (where not is_plus) as inside,
        max(outside) filter (where is_plus) - max(outside) filter (where not is_plus) as outside
    from split
    group by run, model, concept, positions, layer, fold
),

judged as (
    select
        run,
        model,
        concept,
        positions,
        fold,
        num_prompts,
        inside
    from folds
    where isfinite(outside) and inside is not null
    qualify row_number() over (
        partition by run, model, concept, positions, fold order by outside desc, layer
    ) = 1
)
select
    run,
    model,
    concept,
    positions,
    count(*) as num_folds,
    sum(num_prompts)::bigint as num_prompts,
    sum(num_prompts * inside) / sum(num_prompts) as delta
from judged
group by run, model, concept, positions
