-- control_vector_effects: one row per run, model, concept, positions, layer and control.
select
    run,
    model,
    concept,
    positions,
    layer,
    control,
    'grain' as violation,
    count(*) as num_rows
from control_vector_effects
group by run, model, concept, positions, layer, control
having count(*) > 1
