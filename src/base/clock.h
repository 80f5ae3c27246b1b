/* Seconds of a clock that only moves forward. */
#ifndef LN_BASE_CLOCK_H
#define LN_BASE_CLOCK_H

double ln_seconds(void);

#endif
