-- strength_effects: one row per run, model, concept, positions, layer, strength.
select
    run,
    model,
    concept,
    positions,
    layer,
    strength,
    'grain' as violation,
    count(*) as num_rows
from strength_effects
group by run, model, concept, positions, layer, strength
having count(*) > 1
