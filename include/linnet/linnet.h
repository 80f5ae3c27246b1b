/* Linnet: long-context language models in linear time and bounded memory. This header brings in the whole public
 * interface; docs/ has a guide, examples/ a program of fifty lines. */
#ifndef LINNET_LINNET_H
#define LINNET_LINNET_H

#include "linnet/approximate.h"
#include "linnet/attention.h"
#include "linnet/bench.h"
#include "linnet/context.h"
#include "linnet/cuda.h"
#include "linnet/local_linear.h"
#include "linnet/mixer.h"
#include "linnet/model.h"
#include "linnet/session.h"
#include "linnet/softmax.h"
#include "linnet/state_space.h"
#include "linnet/tokenizer.h"
#include "linnet/transform.h"
#include "linnet/types.h"

#endif
