-- held_out_effects: one row per run, model, concept and positions.
select
    run,
    model,
    concept,
    positions,
    'grain' as violation,
    count(*) as num_rows
from held_out_effects
group by run, model, concept, positions
having count(*) > 1
