-- I16: both ends of a stored edge are nodes of its version
SELECT 'workflow_versions' AS place, v.id::text AS what, ends.node_id AS facts
  FROM workflow_versions v
 CROSS JOIN LATERAL (
       SELECT c ->> 'source' AS node_id FROM jsonb_array_elements(v.connections) AS c
        UNION
       SELECT c ->> 'target' FROM jsonb_array_elements(v.connections) AS c) AS ends
 WHERE ends.node_id <> ''
   AND NOT EXISTS (SELECT 1 FROM jsonb_array_elements(v.nodes) AS n
                    WHERE n ->> 'id' = ends.node_id)
