// What a decoding step on a CPU spends its time on: products of a few rows with a matrix, and attention of one position.
//
// One decoded token costs one reading of all weights and of all keys and values. Here each of them is read once, in its
// order, by all threads together and in the width it is stored in. A result is summed by one thread in one order:
// neither the number of threads nor that of the rows changes it.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// Waking the other threads takes some microseconds, as long as so many multiplications.
constexpr int64_t WORTH_THREADS = 16384;

inline float widen(float stored) { return stored; }
inline float widen(uint16_t stored) {
    const uint32_t bits = static_cast<uint32_t>(stored) << 16;  // bf16 is the upper half of a float
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

template <typename Stored>
float dot(const Stored *row, const float *input, int64_t size) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < size; i++) sum += widen(row[i]) * input[i];
    return sum;
}

// outputs (B, O) = inputs (B, I) · weightᵀ (I, O) + bias (O); bias may be null.
template <typename Stored>
void linear(const Stored *weight, const float *bias, const float *inputs, float *outputs, int64_t B, int64_t O,
            int64_t I) {
#pragma omp parallel for schedule(static) if (O * I > WORTH_THREADS)
    for (int64_t o = 0; o < O; o++)
        for (int64_t b = 0; b < B; b++)
            outputs[b * O + o] = dot(weight + o * I, inputs + b * I, I) + (bias ? bias[o] : 0);
}

// The largest multiple of a step, and how many products of such a number and an int8 a sum of 32 bits can hold.
constexpr float HIGHEST = 16383;
constexpr int64_t CHUNK = 1024;

float dot(const int8_t *row, const int16_t *input, int64_t size) {
    float total = 0;
    for (int64_t start = 0; start < size; start += CHUNK) {
        const int64_t end = size - start < CHUNK ? size : start + CHUNK;
        int32_t sum = 0;
        for (int64_t i = start; i < end; i++) sum += row[i] * input[i];
        total += static_cast<float>(sum);
    }
    return total;
}

// Each row of inputs as multiples of a step of its own, (B, I) and (B).
void round_to_steps(const float *inputs, int16_t *multiples, float *steps, int64_t B, int64_t I) {
    for (int64_t b = 0; b < B; b++, inputs += I, multiples += I) {
        float largest = 0;
        for (int64_t i = 0; i < I; i++) largest = std::fmax(largest, std::fabs(inputs[i]));
        steps[b] = largest / HIGHEST;
        const float per_step = largest > 0 ? HIGHEST / largest : 0;
        for (int64_t i = 0; i < I; i++) multiples[i] = static_cast<int16_t>(std::nearbyint(inputs[i] * per_step));
    }
}

// In place: root mean square 1 where eps is not negative, then turned where there are cosines; see positions.py.
void prepare(float *vector, float eps, const float *cosines, const float *sines, int64_t D) {
    if (eps >= 0) {
        const float scale = 1 / std::sqrt(dot(vector, vector, D) / D + eps);
        for (int64_t d = 0; d < D; d++) vector[d] *= scale;
    }
    if (cosines == nullptr) return;
    for (int64_t d = 0, e = D / 2; e < D; d++, e++) {
        const float first = vector[d], second = vector[e];
        vector[d] = first * cosines[d] + second * sines[d];
        vector[e] = second * cosines[e] + first * sines[e];
    }
}

// mixed (D): the values (S, D), weighted by the softmax of the products of the query with the keys (S, D).
void attend(const float *query, const float *keys, const float *values, float *mixed, float *weights, int64_t S,
            int64_t D) {
    const float scale = 1 / std::sqrt(static_cast<float>(D));
    float highest = -INFINITY, total = 0;
    for (int64_t s = 0; s < S; s++) {
        weights[s] = dot(keys + s * D, query, D) * scale;
        highest = std::fmax(highest, weights[s]);
    }
    for (int64_t s = 0; s < S; s++) total += weights[s] = std::exp(weights[s] - highest);
    for (int64_t d = 0; d < D; d++) mixed[d] = 0;
    for (int64_t s = 0; s < S; s++)
        for (int64_t d = 0; d < D; d++) mixed[d] += weights[s] / total * values[s * D + d];
}

}  // namespace

extern "C" void linear_fp32(const float *weight, const float *, const float *bias, const float *inputs, float *outputs,
                            int64_t B, int64_t O, int64_t I) {
    linear(weight, bias, inputs, outputs, B, O, I);
}

extern "C" void linear_bf16(const uint16_t *weight, const float *, const float *bias, const float *inputs,
                            float *outputs, int64_t B, int64_t O, int64_t I) {
    linear(weight, bias, inputs, outputs, B, O, I);
}

// Row o of the matrix is scale[o] · weight[o]. Processors multiply pairs of whole numbers in one instruction, while
// widening int8 to fp32 takes so many that reading would have to wait; 15 bits lose nothing beside the weights' 8.
extern "C" void linear_int8(const int8_t *weight, const float *scale, const float *bias, const float *inputs,
                            float *outputs, int64_t B, int64_t O, int64_t I) {
    std::vector<int16_t> multiples(B * I);
    std::vector<float> steps(B);
    round_to_steps(inputs, multiples.data(), steps.data(), B, I);
#pragma omp parallel for schedule(static) if (O * I > WORTH_THREADS)
    for (int64_t o = 0; o < O; o++)
        for (int64_t b = 0; b < B; b++)
            outputs[b * O + o] =
                dot(weight + o * I, multiples.data() + b * I, I) * steps[b] * scale[o] + (bias ? bias[o] : 0);
}

// Attention of one new position in each row: heads (B, H + 2K, D) are its queries, keys and values, overwritten here;
// keys and values (B, K, capacity, D) take those of the position into `slot`; the first S slots are attended to.
extern "C" void attend_one(float *heads, const float *cosines, const float *sines, float *keys, float *values,
                           float *mixed, int64_t B, int64_t H, int64_t K, int64_t D, int64_t capacity, int64_t slot,
                           int64_t S, float eps) {
#pragma omp parallel for collapse(2) schedule(static) if (B * H * S * D > WORTH_THREADS)
    for (int64_t b = 0; b < B; b++) {
        for (int64_t k = 0; k < K; k++) {
            float *of_row = heads + b * (H + 2 * K) * D, *new_key = of_row + (H + k) * D, *new_value = new_key + K * D;
            float *own_keys = keys + (b * K + k) * capacity * D, *own_values = values + (b * K + k) * capacity * D;
            prepare(new_key, eps, cosines, sines, D);
            std::memcpy(own_keys + slot * D, new_key, D * sizeof(float));
            std::memcpy(own_values + slot * D, new_value, D * sizeof(float));
            std::vector<float> weights(S);
            for (int64_t h = k * (H / K); h < (k + 1) * (H / K); h++) {
                prepare(of_row + h * D, eps, cosines, sines, D);
                attend(of_row + h * D, own_keys, own_values, mixed + (b * H + h) * D, weights.data(), S, D);
            }
        }
    }
}
