-- vector_geometry: one row per run, model, concept, layer, site.
select
    run,
    model,
    concept,
    layer,
    site,
    'grain' as violation,
    count(*) as num_rows
from vector_geometry
group by run, model, concept, layer, site
having count(*) > 1
