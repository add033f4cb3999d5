// Sums of squares, and what optimizers do to each element. Memory is what limits these.

// Sum of squares of every gridDim.x-th stretch of elements. out: f64, [blocks].
extern "C" __global__ void squared_norm_partial(double* __restrict__ out, const float* __restrict__ x, u64 elements) {
    double sum = 0.0;
#pragma unroll 4
    for (u64 i = first_element(); i < elements; i += element_step()) {
        sum += (double)x[i] * (double)x[i];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) {
        out[blockIdx.x] = sum;
    }
}

// One step of Adam: see AdamUpdate in iota-compute's backend.
extern "C" __global__ void adam(float* __restrict__ parameters, float* __restrict__ first_moment,
                                float* __restrict__ second_moment, const float* __restrict__ gradients, u64 elements,
                                float learning_rate, float gradient_scale, float beta1, float beta2, float epsilon,
                                float keep, float gradient_weight, float moment_weight, float second_correction) {
    for (u64 i = first_element(); i < elements; i += element_step()) {
        const float g = gradients[i] * gradient_scale;
        const float m = beta1 * first_moment[i] + (1.0f - beta1) * g;
        const float v = beta2 * second_moment[i] + (1.0f - beta2) * g * g;
        const float towards = gradient_weight * g + moment_weight * m;
        const float step = towards / (sqrtf(v * second_correction) + epsilon);
        first_moment[i] = m;
        second_moment[i] = v;
        parameters[i] = parameters[i] * keep - learning_rate * step;
    }
}

// One step of momentum: see MomentumUpdate in iota-compute's backend. ahead: 1 to take the moment a step further.
extern "C" __global__ void momentum(float* __restrict__ out, float* __restrict__ moment,
                                    const float* __restrict__ gradients, u64 elements, float gradient_scale,
                                    float decay, u32 ahead) {
    for (u64 i = first_element(); i < elements; i += element_step()) {
        const float g = gradients[i] * gradient_scale;
        const float m = decay * moment[i] + (1.0f - decay) * g;
        moment[i] = m;
        out[i] = ahead ? decay * m + (1.0f - decay) * g : m;
    }
}

// out = keep out + weight x; if keep is 0, what out held is not read.
extern "C" __global__ void blend(float* __restrict__ out, float keep, const float* __restrict__ x, float weight,
                                 u64 elements) {
    for (u64 i = first_element(); i < elements; i += element_step()) {
        out[i] = keep == 0.0f ? weight * x[i] : keep * out[i] + weight * x[i];
    }
}
