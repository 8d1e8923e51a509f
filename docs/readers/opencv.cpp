// Decide about images by OpenCV's dnn, with a file made with "opset": 13 and without "preprocess".
// OpenCV cannot resize as the training does, so this program does it.
//
//   g++ -O2 -std=c++17 opencv.cpp -o decide $(pkg-config --cflags --libs opencv4) -lz
//   ./decide model.onnx IMAGE ...     Debian: libopencv-dev nlohmann-json3-dev zlib1g-dev
#include <zlib.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <opencv2/dnn.hpp>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>

// Rows of an image are resized as by Pillow's BILINEAR: each new pixel is the mean of those under
// a triangle, rounded. It turns rows into columns, so that doing it twice resizes both.
static cv::Mat resize_rows(const cv::Mat& image, int width) {
    const double scale = double(image.cols) / width, reach = std::max(scale, 1.0);
    cv::Mat result(width, image.rows, image.type());
    const int channels = image.channels();
    for (int column = 0; column < width; ++column) {
        const double centre = (column + 0.5) * scale;
        const int first = std::max(0, int(centre - reach + 0.5));
        const int last = std::min(image.cols, int(centre + reach + 0.5));
        std::vector<double> weights;
        double sum = 0;
        for (int k = first; k < last; ++k)
            sum += weights.emplace_back(std::max(0.0, 1 - std::abs(k + 0.5 - centre) / reach));
        for (int row = 0; row < image.rows; ++row)
            for (int c = 0; c < channels; ++c) {
                double value = 0.5;
                for (int k = first; k < last; ++k)
                    value += weights[k - first] / sum * image.ptr(row)[k * channels + c];
                result.ptr(column)[row * channels + c] = uchar(value);
            }
    }
    return result;
}

int main(int count, char** words) {
    const std::filesystem::path file = words[1];
    const auto report = nlohmann::json::parse(std::ifstream(file.parent_path() / "export.json"));
    const auto& about = report["metadata"];
    const auto& input = about["input"];
    std::ifstream stream(file, std::ios::binary);
    const std::vector<uchar> content(std::istreambuf_iterator<char>(stream), {});
    const auto checksum = crc32(0, content.data(), content.size());
    if (checksum != report["files"][file.filename().string()]["crc32"].get<uLong>() ||
        !report["passed"].get<bool>() || about["preprocessed"] != false ||
        !about["preprocess"]["transforms"].empty()) {
        std::fprintf(stderr, "%s is damaged, or was not proven, or is for another program\n", words[1]);
        return 2;
    }
    const auto classes = about["classes"].get<std::vector<std::string>>();
    const auto mean = input["mean"].get<std::vector<float>>(), std = input["std"].get<std::vector<float>>();
    const int height = input["shape"][1], width = input["shape"][2], channels = input["shape"][0];
    const auto inspection = about.value("inspection", nlohmann::json());
    cv::dnn::Net network = cv::dnn::readNetFromONNX(content);
    for (int n = 2; n < count; ++n) {
        cv::Mat image = cv::imread(words[n], cv::IMREAD_COLOR), blob;
        if (image.empty()) {
            std::fprintf(stderr, "%s cannot be read\n", words[n]);
            return 2;
        }
        cv::cvtColor(image, image, channels == 1 ? cv::COLOR_BGR2GRAY : cv::COLOR_BGR2RGB);
        image = resize_rows(resize_rows(image, width), height);
        std::vector<cv::Mat> planes;
        cv::split(image, planes);
        for (int c = 0; c < channels; ++c)
            planes[c].convertTo(planes[c], CV_32F, 1 / (255.0 * std[c]), -mean[c] / std[c]);
        cv::merge(planes, image);
        network.setInput(cv::dnn::blobFromImage(image));
        cv::Mat output = network.forward(), probability;
        cv::exp(output - *std::max_element(output.begin<float>(), output.end<float>()), probability);
        if (about["softmax"].get<bool>()) probability = output;
        probability /= cv::sum(probability)[0];
        const auto start = probability.begin<float>();
        int decision = std::max_element(start, probability.end<float>()) - start;
        if (!inspection.is_null()) {
            const std::string name = inspection["target"];
            const int target = std::find(classes.begin(), classes.end(), name) - classes.begin();
            const float threshold = inspection["threshold"], likely = start[target];
            if (likely >= threshold) {
                decision = likely < inspection.value("sure_threshold", threshold) ? -1 : target;
            } else {
                start[target] = -1;
                decision = std::max_element(start, probability.end<float>()) - start;
                start[target] = likely;
            }
        }
        const char* name = decision < 0 ? "unsure" : classes[decision].c_str();
        double largest;
        cv::minMaxLoc(probability, nullptr, &largest);
        std::printf("%s\t%s\t%.6f\n", words[n], name, largest);
    }
}
