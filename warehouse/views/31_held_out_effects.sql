-- grain:   one row per run, model, concept and positions
-- source:  prompt_effects
-- formula: cross-fitting over five folds of the prompts: the best layer is chosen on four and judged on the
--          fifth; delta = mean over all prompts of the effect at the layer that was chosen without them
-- caveat:  folds are by hash of concept and prompt, alike for every model; null delta with one prompt.
--          Hashes are DuckDB's: another version may fold otherwise
-- build:   once
with folded as (
    select
        run,
        model,
        concept,
        positions,
        layer,
        effect,
        dense_rank() over (
            partition by run, model, concept, positions order by hash(concept, prompt), prompt
        ) % 5 as fold
    from prompt_effects
),

fold_sums as (
    select
        run,
        model,
        concept,
        positions,
        layer,
        fold,
        sum(effect) as inside,
        count(*) as num_inside
    from folded
    group by run, model, concept, positions, layer, fold
),

split as (
    select
        run,
        model,
        concept,
        positions,
        layer,
        fold,
        inside,
        num_inside,
        sum(inside) over whole - inside as outside,
        sum(num_inside) over whole - num_inside as num_outside
    from fold_sums
    window whole as (partition by run, model, concept, positions, layer)
),

judged as (
    select
        run,
        model,
        concept,
        positions,
        fold,
        inside,
        num_inside
    from split
    where num_outside > 0
    qualify row_number() over (
        partition by run, model, concept, positions, fold order by outside / num_outside desc, layer
    ) = 1
)
select
    run,
    model,
    concept,
    positions,
    count(*) as num_folds,
    sum(num_inside)::bigint as num_prompts,
    sum(inside) / sum(num_inside) as delta
from judged
group by run, model, concept, positions
