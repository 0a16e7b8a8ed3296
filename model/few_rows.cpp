// Products of a few rows with a matrix: outputs (B, O) = inputs (B, I) · weightᵀ (I, O) + bias (O).
//
// A decoding step multiplies one row, or a few, with every matrix of the model, so its time is that of reading the
// weights. Here each of them is read once, by all threads together, in the width it is stored in. An output is summed
// by one thread in one order: neither the number of threads nor that of the rows changes it.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {

// Waking the other threads takes some microseconds, as long as reading so many weights.
constexpr int64_t WORTH_THREADS = 16384;

inline float widen(float stored) { return stored; }
inline float widen(uint16_t stored) {
    const uint32_t bits = static_cast<uint32_t>(stored) << 16;  // bf16 is the upper half of a float
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// Four rows of the matrix are summed side by side, for a single sum would wait for its own last addition.
template <typename Stored>
void linear(const Stored *weight, const float *bias, const float *inputs, float *outputs, int64_t B, int64_t O,
            int64_t I) {
#pragma omp parallel for schedule(static) if (O * I > WORTH_THREADS)
    for (int64_t first = 0; first < O; first += 4) {
        const int64_t size = O - first < 4 ? O - first : 4;
        const Stored *row0 = weight + first * I;
        // A group that is not full reads its last row again.
        const Stored *row1 = row0 + (size > 1) * I, *row2 = row1 + (size > 2) * I, *row3 = row2 + (size > 3) * I;
        for (int64_t b = 0; b < B; b++) {
            const float *input = inputs + b * I;
            float sum0 = 0, sum1 = 0, sum2 = 0, sum3 = 0;
#pragma omp simd reduction(+ : sum0, sum1, sum2, sum3)
            for (int64_t i = 0; i < I; i++) {
                sum0 += widen(row0[i]) * input[i];
                sum1 += widen(row1[i]) * input[i];
                sum2 += widen(row2[i]) * input[i];
                sum3 += widen(row3[i]) * input[i];
            }
            const float sums[] = {sum0, sum1, sum2, sum3};
            for (int64_t g = 0; g < size; g++)
                outputs[b * O + first + g] = sums[g] + (bias ? bias[first + g] : 0);
        }
    }
}

// The largest multiple of the step, and the most products of such a number and an int8 that fit a sum of 32 bits.
constexpr float HIGHEST = 16383;
constexpr int64_t CHUNK = 1024;

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

}  // namespace

extern "C" void linear_fp32(const float *weight, const float *, const float *bias, const float *inputs,
                               float *outputs, int64_t B, int64_t O, int64_t I) {
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
    for (int64_t o = 0; o < O; o++) {
        for (int64_t b = 0; b < B; b++) {
            const int8_t *row = weight + o * I;
            const int16_t *input = multiples.data() + b * I;
            float total = 0;
            for (int64_t start = 0; start < I; start += CHUNK) {
                const int64_t end = I - start < CHUNK ? I : start + CHUNK;
                int32_t sum = 0;
                for (int64_t i = start; i < end; i++) sum += row[i] * input[i];
                total += static_cast<float>(sum);
            }
            outputs[b * O + o] = total * steps[b] * scale[o] + (bias ? bias[o] : 0);
        }
    }
}
