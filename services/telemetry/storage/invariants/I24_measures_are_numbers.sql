-- I24: a metric is a finite number, a size is not below nothing
SELECT 'performance_metrics' AS place, id::text AS what, metric_value::text AS facts
  FROM performance_metrics
 WHERE metric_value::text IN ('NaN', 'Infinity', '-Infinity')
UNION ALL
SELECT 'files', id::text, file_size_bytes::text
  FROM files
 WHERE file_size_bytes < 0
