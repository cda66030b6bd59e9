-- I10: the token of a node is not below those of its attempts
SELECT 'node_executions' AS place, n.id::text AS what,
       format('%s below %s', n.attempt_token, a.token) AS facts
  FROM node_executions n
  JOIN node_attempts a ON a.node_execution_id = n.id
 WHERE n.status <> 'retrying' AND n.attempt_token < a.token
