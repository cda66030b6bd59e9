-- I9: what runs has a runner that is not fenced
-- Settles: may be so for a moment while runs go on.
SELECT 'node_executions' AS place, n.id::text AS what,
       coalesce(r.state, 'no runner') AS facts
  FROM node_executions n
  LEFT JOIN runner_members r ON r.incarnation = n.runner_incarnation
 WHERE n.status = 'running' AND n.node_type = 'python'
   AND (r.incarnation IS NULL OR r.state IN ('fenced', 'gone'))
