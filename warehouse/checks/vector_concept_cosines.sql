-- vector_concept_cosines: one row per run, model, layer, site, concept, other_concept.
select
    run,
    model,
    layer,
    site,
    concept,
    other_concept,
    'grain' as violation,
    count(*) as num_rows
from vector_concept_cosines
group by run, model, layer, site, concept, other_concept
having count(*) > 1
