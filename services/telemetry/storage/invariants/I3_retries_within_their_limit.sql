-- I3: retries stay within their limit
SELECT 'node_executions' AS place, id::text AS what,
       format('%s of %s', retry_count, max_retries) AS facts
  FROM node_executions
 WHERE retry_count NOT BETWEEN 0 AND max_retries
