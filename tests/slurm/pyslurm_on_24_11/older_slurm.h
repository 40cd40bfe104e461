/*
 * What pyslurm 25.11 expects of Slurm's headers and 24.11's do not have. Included in front of every module (gcc -include),
 * because the names below are used in C that Cython generates. Where 24.11 has the thing under another name or with other
 * arguments, it is mapped; where it has no such thing, the stand-in does nothing and pyslurm shows the field as unset.
 */
#ifndef OLDER_SLURM_H
#define OLDER_SLURM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <slurm/slurm.h>
#include <slurm/slurm_errno.h>
#include <slurm/slurmdb.h>

/* Flag words that 25.11 gave a type of their own. */
typedef uint32_t select_type_flags_t;
typedef uint32_t slurmdb_cluster_flags_t;
typedef uint32_t slurmdb_qos_flags_t;

/* SelectTypeParameters: CR_* became SELECT_*. Only shown, never sent, by pyslurm. */
#define SELECT_CPU CR_CPU
#define SELECT_SOCKET CR_SOCKET
#define SELECT_CORE CR_CORE
#define SELECT_MEMORY CR_MEMORY
#define SELECT_ONE_TASK_PER_CORE CR_ONE_TASK_PER_CORE
#define SELECT_CORE_DEFAULT_DIST_BLOCK CR_CORE_DEFAULT_DIST_BLOCK
#define SELECT_LLN CR_LLN
#define SELECT_PACK_NODES CR_PACK_NODES

/* Flags of a job that 24.11 does not know: no bit is ever set. */
#define SPREAD_SEGMENTS 0
#define CONSOLIDATE_SEGMENTS 0

/* Steps are named by one struct since 25.11, by two numbers before. */
static inline int older_get_job_steps(slurm_step_id_t *id, job_step_info_response_msg_t **steps, uint16_t flags)
{
	return slurm_get_job_steps(0, id->job_id, id->step_id, steps, flags); /* 0: whatever the time of the last change */
}

static inline int older_signal_job_step(slurm_step_id_t *id, uint32_t signal)
{
	return slurm_signal_job_step(id->job_id, id->step_id, signal);
}

static inline int older_kill_job_step(slurm_step_id_t *id, uint16_t signal, uint16_t flags)
{
	return slurm_kill_job_step(id->job_id, id->step_id, signal, flags);
}

/* After the functions above, which call the real ones. */
#define slurm_get_job_steps older_get_job_steps
#define slurm_signal_job_step older_signal_job_step
#define slurm_kill_job_step older_kill_job_step

/* Patterns such as %j in a step's or an accounted job's file names are expanded by the library since 25.11 only. */
static inline char *older_no_expansion(char *path, void *record)
{
	(void)path;
	(void)record;
	return NULL;
}

#define slurm_expand_step_stdio_fields(path, record) older_no_expansion((path), (record))
#define slurmdb_expand_job_stdio_fields(path, record) older_no_expansion((path), (record))
#define slurmdb_expand_step_stdio_fields(path, record) older_no_expansion((path), (record))

#endif
