-- chosen_layers: one row per run, model, concept and positions.
select
    run,
    model,
    concept,
    positions,
    'grain' as violation,
    count(*) as num_rows
from chosen_layers
group by run, model, concept, positions
having count(*) > 1
