-- grain:   one row per run, concept, site, model, other model of the same width (model < other_model) and layer
-- source:  vectors, models
-- formula: other_layer = the other model's layer of nearest depth, round(layer * num_layers of the other /
--          num_layers), where it has a vector there; cosine = cosine of the two vectors
-- caveat:  widths are compared, not bases: models trained apart have unrelated bases and a cosine of about
--          0 +- 1 / sqrt(width) whatever they have learnt. Only models of one ancestor can show more
with placed as (
    select
        vectors.run,
        vectors.model,
        vectors.concept,
        vectors.layer,
        vectors.site,
        vectors.vector,
        len(vectors.vector) as width,
        models.num_layers
    from vectors
    inner join models
        on vectors.run = models.run
        and vectors.model = models.model
)
select
    placed.run,
    placed.concept,
    placed.site,
    placed.model,
    others.model as other_model,
    placed.layer,
    others.layer as other_layer,
    placed.layer / placed.num_layers as depth,
    placed.width,
    list_cosine_similarity(placed.vector, others.vector)::double as cosine
from placed
inner join placed as others
    on placed.run = others.run
    and placed.concept = others.concept
    and placed.site = others.site
    and placed.width = others.width
    and others.layer = round(placed.layer * others.num_layers / placed.num_layers)
    and placed.model < others.model
