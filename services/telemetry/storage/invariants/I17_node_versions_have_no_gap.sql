-- I17: a node's versions are counted without gaps, and it stands at the last
SELECT 'python_nodes' AS place, p.id::text AS what,
       format('%s versions, last %s, stands at %s', count(v.id), max(v.version), p.version) AS facts
  FROM python_nodes p
  LEFT JOIN python_node_versions v ON v.node_id = p.id
 GROUP BY p.id, p.version
HAVING count(v.id) <> coalesce(max(v.version), 0) OR max(v.version) IS DISTINCT FROM p.version
