-- strength_sums: one row per run, model, concept, positions, layer, strength, matching, fold.
select
    run,
    model,
    concept,
    positions,
    layer,
    strength,
    matching,
    fold,
    'grain' as violation,
    count(*) as num_rows
from strength_sums
group by run, model, concept, positions, layer, strength, matching, fold
having count(*) > 1
