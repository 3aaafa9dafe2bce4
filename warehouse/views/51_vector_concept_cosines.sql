-- grain:   one row per run, model, layer, site, concept and other concept (concept < other_concept)
-- source:  vectors, models
-- formula: cosine = cosine of the two concepts' vectors of one layer; depth = layer / num_layers
-- caveat:  of independent directions it is about 0 +- 1 / sqrt(width), width being the hidden size; real
--          vectors share what all answers share (the letter, the end of the prompt), which is not the concept
select
    vectors.run,
    vectors.model,
    vectors.layer,
    vectors.site,
    vectors.concept,
    others.concept as other_concept,
    vectors.layer / models.num_layers as depth,
    len(vectors.vector) as width,
    list_cosine_similarity(vectors.vector, others.vector)::double as cosine
from vectors
inner join vectors as others
    on vectors.run = others.run
    and vectors.model = others.model
    and vectors.layer = others.layer
    and vectors.site = others.site
    and vectors.concept < others.concept
left join models
    on vectors.run = models.run
    and vectors.model = models.model
